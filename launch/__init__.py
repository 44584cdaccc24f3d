"""SageMaker training jobs of w2v_lightning: submit, watch, resume, count the cost. `python -m launch --help`."""
