"""Training jobs on SageMaker: submit, watch, resume, download, and what they cost."""
