"""Performance model: measured runs (run.json) to a model of the step time that explains and predicts."""
