"""Shim of `w2v_lightning.sagemaker`: `python -m launch`, the container's entry point, and the IAM policies."""
