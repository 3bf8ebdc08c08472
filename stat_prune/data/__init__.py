"""From what people have to batches."""
