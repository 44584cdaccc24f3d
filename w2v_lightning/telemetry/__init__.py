"""Measurements of a training run: throughput, step times, GPU use, communication, profiles."""
