"""Benchmarks that a user runs on his own machine and data."""
