"""Planner: time and money of every candidate machine, from the performance model, and the best of them."""
