"""Machines to choose from: SageMaker's, those of other places, or one at a price that the user gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2v_lightning.catalog import images
from w2v_lightning.catalog.defaults import defaults
from w2v_lightning.catalog.instances import INSTANCES, Instance, instance
from w2v_lightning.errors import InputError
from w2v_lightning.planner import offers
from w2v_lightning.planner.candidates import Candidate, Pricing, candidates, candidates_of
from w2v_lightning.planner.offers import Offer


@dataclass(frozen=True)
class Market:
    """Machines to choose from.

    Args:
        region: AWS region of SageMaker's and EC2's; "" if no place is AWS's.
        jobs: SageMaker's instance types.
        rented: machines outside SageMaker.
        unpriced: reason against each machine, or GPU, outside SageMaker that has no known price or speed.
    """

    region: str
    jobs: tuple[str, ...]
    rented: tuple[Offer, ...]
    unpriced: dict[str, str]

    @classmethod
    def open(
        cls, places: Sequence[str], region: str | None, types: Sequence[str] = (), boxes: Sequence[Offer] = ()
    ) -> "Market":
        """Return the machines of some places.

        Args:
            places: places to choose from; may be empty if there are boxes.
            region: AWS region if a place is AWS's, else the cloud's name of a region; None: its cheapest.
            types: names of machines to choose from; none: all of these places.
            boxes: machines to add.

        Raises:
            InputError: a type is unknown, or nothing is offered.
        """
        is_on_aws = bool({"sagemaker", "ec2"} & set(places))
        if is_on_aws:
            images.check_region(region or "")
        rented, unpriced = list(boxes), dict[str, str]()
        for place in places:
            if place == "ec2":
                known, reasons = offers.ec2_offers(region or "")
            elif place != "sagemaker":
                known, reasons = offers.cloud_offers(place, None if is_on_aws else region)
            else:
                continue
            rented, unpriced = rented + known, unpriced | reasons
        jobs: tuple[str, ...] = tuple(INSTANCES) if "sagemaker" in places else ()
        if types:
            rented = [offer for offer in rented if offer.instance_type in types or offer in boxes]
            unpriced = {name: reason for name, reason in unpriced.items() if name in types}
            names = {offer.instance_type for offer in rented} | set(unpriced)
            jobs = tuple(instance(name).name for name in types if name not in names) if jobs else ()
            if missing := [name for name in types if name not in names and name not in jobs]:
                raise InputError(f"--instance_type: {', '.join(missing)} is not offered at {', '.join(places)}.")
        return cls(region if is_on_aws and region else "", jobs, tuple(rented), unpriced)

    @property
    def machines(self) -> dict[str, Instance]:
        """Hardware by the name of its type."""
        bare = {name.removeprefix("ml."): machine for name, machine in INSTANCES.items()}
        unpriced = {name: bare[name] for name in self.unpriced if name in bare}
        return (
            unpriced
            | {offer.instance_type: offer.machine for offer in self.rented}
            | {name: INSTANCES[name] for name in self.jobs}
        )

    def candidates(
        self, config: Mapping[str, Any], pricing: Pricing, max_count: int
    ) -> tuple[list[Candidate], dict[str, str]]:
        """Return the candidates for a config, and the reason against each of SageMaker's types that is left out.

        Raises:
            InputError: nothing is left.
        """
        possible, useless = candidates_of(self.rented, config, pricing, max_count), dict[str, str]()
        if self.jobs:
            image = images.image_uri(defaults()["torch"], self.region)
            jobs, useless = candidates(self.region, image, config, pricing, self.jobs, max_count)
            possible = jobs + possible
        if not possible:
            raise InputError(f"plan: nothing has a price that is known with --spot {pricing}: give another --where.")
        return possible, useless

    def unknowns(self) -> Iterator[str]:
        """Yield notes on what is not known of the machines outside SageMaker."""
        if any(not offer.has_network for offer in self.rented):
            yield "Several machines are planned at SageMaker and EC2 only: no catalog has the networks of other places."
        if any(offer.place == offers.BOX for offer in self.rented):
            yield f"The machine at your price is assumed to have {offers.VCPUS_PER_GPU} virtual CPUs per GPU."
