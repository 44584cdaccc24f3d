"""Planner: time and cost of each candidate machine from the performance model, and the best candidate."""
