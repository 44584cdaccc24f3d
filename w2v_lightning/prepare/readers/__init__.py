"""Readers of corpora in the layouts that people have: one file each, listed in `layouts.py`."""
