"""What the machine offers: files, locks, processes, clocks, memory."""
