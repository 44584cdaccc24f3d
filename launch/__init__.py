"""Shim over `w2v_lightning.sagemaker`: `python -m launch`, the container's entry point, the IAM policies."""
