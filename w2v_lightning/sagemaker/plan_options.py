"""Options of the command `plan`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse.typing import PositiveFloat, PositiveInt

from w2v_lightning.errors import InputError, did_you_mean
from w2v_lightning.planner import offers
from w2v_lightning.planner.candidates import Pricing
from w2v_lightning.planner.offers import PLACES, Offer

HOURS_PER = {"m": 1 / 60, "h": 1.0, "d": 24.0}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Recommend machines, their number, and on-demand or spot, by time and cost.

    Other options are those of `python -m w2v_lightning fit`, such as --data.batch_seconds 800.

    Args:
        config: config file of `fit`; may be repeated, later files win.
        hours: duration of the training audio in hours; required unless manifest is given.
        manifest: manifest of the training data, by whose durations steps are planned.
        epochs: number of epochs; default: the limits in the config.
        deadline: largest time until the model is trained, such as 90m, 6h or 2d.
        budget: largest cost of the run in USD.
        region: region of --where; default on AWS: AWS_REGION or that of the AWS profile; elsewhere: the cheapest.
        where: place to train at: sagemaker (the default), ec2, gcp, lambda, nebius, runpod, vast or verda; may be
            repeated, to compare them.
        refresh: fetch newer prices of these places first.
        usd_per_hour: price of one GPU per hour in USD, to plan for a machine of --gpus times --gpu at this price.
        gpu: GPU of that machine, such as H100.
        gpus: number of GPUs of that machine.
        spot: use of spot instances.
        study: folder of measured runs; may be repeated; default: W2V_LIGHTNING_STUDY, or the measurements
            that come with this package.
        instance_type: instance type to consider; may be repeated; default: all.
        most_instances: largest number of instances; the default is that of the original study.
    """

    config: list[str]
    hours: PositiveFloat | None = None
    manifest: str | None = None
    epochs: PositiveInt | None = None
    deadline: str | None = None
    budget: PositiveFloat | None = None
    region: str | None = None
    where: list[str] = field(default_factory=list)
    refresh: bool = False
    usd_per_hour: PositiveFloat | None = None
    gpu: str | None = None
    gpus: PositiveInt | None = None
    spot: Pricing = "allow"
    study: list[Path] = field(default_factory=list)
    instance_type: list[str] = field(default_factory=list)
    most_instances: PositiveInt = 16

    def __post_init__(self) -> None:
        if (self.hours is None) == (self.manifest is None):
            raise InputError("plan: give either --hours, the hours of training audio, or --manifest, a file.")
        _ = self.deadline_h  # raises if it is invalid
        if (self.usd_per_hour is None) != (self.gpu is None) or (self.gpus and self.gpu is None):
            raise InputError(
                "plan: --usd_per_hour and --gpu describe a machine: give both, and --gpus if it has several."
            )
        _ = self.box
        for place in self.where:
            if place not in PLACES:
                raise InputError(
                    f"--where is {place!r}{did_you_mean(place, PLACES) or '.'} Choose from {', '.join(PLACES)}."
                )

    @property
    def box(self) -> Offer | None:
        """Machine that --gpu, --gpus and --usd_per_hour describe."""
        if self.gpu is None or self.usd_per_hour is None:
            return None
        return offers.box(self.gpu, self.gpus or 1, self.usd_per_hour)

    @property
    def places(self) -> list[str]:
        """Places to plan for: SageMaker, unless others or a machine are given."""
        return list(dict.fromkeys(self.where)) or ([] if self.gpu else ["sagemaker"])

    @property
    def deadline_h(self) -> float | None:
        """Deadline in hours."""
        return None if self.deadline is None else hours_of("--deadline", self.deadline)


def hours_of(option: str, text: str) -> float:
    """Return the hours of a time such as "6h".

    Raises:
        InputError: the value of `option` is not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([mhd])", text)
    if not match or not float(match[1]):
        raise InputError(f"{option} is {text!r}: give a number and its unit, such as 90m, 6h or 2d.")
    return float(match[1]) * HOURS_PER[match[2]]
