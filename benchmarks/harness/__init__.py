"""What the benchmarks share: data at hand, records, cells that are resumed, tables and figures."""
