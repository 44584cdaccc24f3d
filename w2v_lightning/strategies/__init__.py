"""Distributed strategies and environments: DDP, FSDP2, SMDDP, SageMaker."""
