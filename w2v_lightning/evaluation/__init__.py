"""Scoring: word and character error rates, and marked differences between texts."""
