"""What a training job costs, from what the service says of it and from a price."""

# SageMaker's managed spot has no price of its own to look up: the saving is known when a job has ended. Eight job logs
# of 2021-2025 had 54-79 %, and EC2's spot prices of September 2026 were 58-59 % below on demand for g4dn.
SPOT_SAVING_RANGE = (0.50, 0.70)
HOURS_PER_MONTH = 365.25 * 24 / 12


def training_usd(billable_s: float, count: int, usd_per_hour: float) -> float:
    """Dollars for `count` instances at the on-demand price of one.

    Billable seconds are of one instance; of a spot job fewer than it trained, which is its discount.
    """
    return billable_s / 3600 * count * usd_per_hour


def storage_usd(training_s: float, count: int, volume_gb: float, usd_per_gb_month: float) -> float:
    """Dollars for the disks. Instances that bring their own (g4dn, g5, g6, p4d, p5) are not billed for them."""
    return training_s / 3600 / HOURS_PER_MONTH * count * volume_gb * usd_per_gb_month


def saving(training_s: float, billable_s: float) -> float:
    """Share of the on-demand cost that was saved, 0 to 1."""
    return 1 - billable_s / training_s if training_s else 0.0
