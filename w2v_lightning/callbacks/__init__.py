"""Callbacks: preemption, progress, diagnosis, weight averages, export, summary, predictions."""
