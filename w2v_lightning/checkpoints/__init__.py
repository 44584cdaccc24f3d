"""Checkpoints: written whole or not at all, in the background, every so often; found again by the next start."""
