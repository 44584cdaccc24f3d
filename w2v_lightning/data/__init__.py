"""Data pipeline from a corpus on disk to batches on the device: manifest, plan, read, decode, collate."""
