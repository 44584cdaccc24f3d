"""Checkpoints: atomic files, written in the background at intervals, and found again when a run restarts."""
