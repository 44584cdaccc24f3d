"""How processes are started and talk to each other: DDP, SMDDP, SageMaker."""
