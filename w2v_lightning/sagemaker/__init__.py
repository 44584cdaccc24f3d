"""SageMaker training jobs: check, submit, watch, resume, count the cost; studies and plans for them."""
