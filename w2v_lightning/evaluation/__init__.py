"""Scoring: word and character error rates, and what the errors look like."""
