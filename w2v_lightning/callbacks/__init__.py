"""What watches a run from outside: progress, throughput, export, summary, predictions."""
