"""The process and its device: signals, hardware, precision, files."""
