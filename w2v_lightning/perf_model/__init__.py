"""Performance model of the step time, fitted to measured runs (run.json), that explains and predicts."""
