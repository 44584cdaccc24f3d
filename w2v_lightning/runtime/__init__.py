"""Process and device: signals, hardware, precision, files."""
