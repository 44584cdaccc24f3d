"""Machines that can be rented outside SageMaker, each with its price: at EC2, at other clouds, or any box."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from w2v_lightning.catalog import clouds
from w2v_lightning.catalog.dated import EstimatedPrice, Price
from w2v_lightning.catalog.estimated_prices import ec2_price
from w2v_lightning.catalog.instances import GPUS, INSTANCES, Instance
from w2v_lightning.errors import InputError, did_you_mean

PLACES = ("sagemaker", "ec2", "gcp", "lambda", "nebius", "runpod", "vast", "verda")
BOX = "box"  # place of a machine whose price the user gives
SPOT_SD = 0.15  # of a spot price's logarithm: the snapshot has one moment, and zones differ by as much
# SkyPilot's names of GPUs that differ from those in catalog/instances.py.
ACCELERATORS = {
    "A100-80GB": "A100 80 GB",
    "A100-80GB-SXM": "A100 80 GB",
    "A100-80GB-PCIe": "A100 PCIe",
    "H100-SXM": "H100",
    "H100-PCIe": "H100 PCIe",
    "H200-SXM": "H200",
    "V100-32GB": "V100 32 GB",
    "RTXPRO4500": "RTX PRO 4500",
    "RTXPRO6000": "RTX PRO Server 6000",
}
VCPUS_PER_GPU = 8  # assumed of a box; decides the number of loader workers


@dataclass(frozen=True)
class Offer:
    """Machine that can be rented outside SageMaker.

    Args:
        place: "ec2", another cloud, or "box".
        machine: hardware; its network is 0 Gbit/s if nothing is known of it, and then it is planned alone.
        region: the place's name of the region; "all" if the price is the same in all of them.
        price: on-demand price; None if there is none.
        spot: spot price; None if there is none.
    """

    place: str
    machine: Instance
    region: str
    price: Price | None
    spot: Price | None

    @property
    def instance_type(self) -> str:
        """The place's own name of the machine."""
        return self.machine.name.removeprefix("ml.") if self.place == "ec2" else self.machine.name

    @property
    def has_network(self) -> bool:
        """True if the network between several such machines is known."""
        return self.machine.gbit_per_s > 0

    def __str__(self) -> str:
        return f"{self.instance_type} ({self.place})" if self.place != BOX else self.instance_type


def ec2_offers(region: str) -> tuple[list[Offer], dict[str, str]]:
    """Return EC2's machines in a region, and the reason against each type that cannot be priced."""
    spot = {row.instance_type: row.spot for row in clouds.listing("aws") if row.region == region}
    offers: list[Offer] = []
    unpriced: dict[str, str] = {}
    for name, machine in INSTANCES.items():
        bare = name.removeprefix("ml.")
        price, spot_price = ec2_price(name, region), spot.get(bare)
        if price or spot_price:
            offers.append(Offer("ec2", machine, region, price, _at_one_moment(spot_price)))
        else:
            unpriced[bare] = f"EC2 has no price of it in {region} that is known"
    return offers, unpriced


def cloud_offers(cloud: str, region: str | None) -> tuple[list[Offer], dict[str, str]]:
    """Return a cloud's machines, each in its cheapest region, and the reason against each GPU that is unknown here.

    Args:
        cloud: name of the cloud, such as "lambda".
        region: the cloud's name of a region; None: all of them.

    Raises:
        InputError: the cloud has no machine with a known price in this region.
    """
    rows = clouds.listing(cloud)
    if region is not None:
        regions = sorted({row.region for row in rows} - {"all"})
        rows = tuple(row for row in rows if row.region in (region, "all"))
        if not rows:
            raise InputError(f"--region: no price of {cloud} is known in {region!r}; choose from {', '.join(regions)}.")
    offers: list[Offer] = []
    unknown: dict[str, str] = {}
    for row in rows:
        gpu = _gpu(cloud, row.accelerator)
        if gpu is None:
            unknown[f"{row.accelerator} ({cloud})"] = "speed unknown (w2v_lightning/perf_model/specs.py)"
            continue
        machine = Instance(row.instance_type, row.gpus, gpu, *GPUS[gpu], row.vcpus, row.gib, 0.0, False)
        offers.append(Offer(cloud, machine, row.region, row.price, _at_one_moment(row.spot)))
    return list(_cheapest(offers)), unknown


def box(gpu: str, gpus: int, usd_per_gpu_hour: float) -> Offer:
    """Return a machine whose price the user gives.

    Args:
        gpu: name of the GPU, such as "H100", in SkyPilot's or this package's spelling.
        gpus: number of GPUs.
        usd_per_gpu_hour: price of one GPU per hour, in dollars.

    Raises:
        InputError: the GPU is unknown.
    """
    name = _gpu("", gpu) or _gpu("", gpu.upper())
    if name is None:
        known = ", ".join(GPUS)
        raise InputError(f"--gpu is {gpu!r}, whose speed is not known{did_you_mean(gpu, list(GPUS))}; known: {known}.")
    machine = Instance(f"{gpus} x {name}", gpus, name, *GPUS[name], VCPUS_PER_GPU * gpus, 0, 0.0, False)
    source = f"--usd_per_hour {usd_per_gpu_hour:g} for each of {gpus} GPU{'s' if gpus > 1 else ''}"
    return Offer(BOX, machine, "", Price(gpus * usd_per_gpu_hour, date.today().isoformat(), source), None)


def _gpu(cloud: str, accelerator: str) -> str | None:
    """Return this package's name of a GPU."""
    if cloud == "runpod" and accelerator == "A100-80GB":  # RunPod's own name: the others end in -SXM
        return "A100 PCIe"
    name = ACCELERATORS.get(accelerator, accelerator)
    return name if name in GPUS else None


def _at_one_moment(price: Price | None) -> Price | None:
    if price is None:
        return None
    return EstimatedPrice(price.usd_per_hour, price.date, f"spot at one moment; {price.source}", SPOT_SD)


def _cheapest(offers: Iterable[Offer]) -> Iterable[Offer]:
    """Yield of each machine the region that is cheapest on demand, and the one that is cheapest on spot."""
    by_machine: dict[Instance, list[Offer]] = {}
    for offer in offers:
        by_machine.setdefault(offer.machine, []).append(offer)
    for alike in by_machine.values():
        priced = [offer for offer in alike if offer.price]
        spot = [offer for offer in alike if offer.spot]
        on_demand_best = min(priced, key=lambda offer: offer.price.usd_per_hour if offer.price else 0, default=None)
        spot_best = min(spot, key=lambda offer: offer.spot.usd_per_hour if offer.spot else 0, default=None)
        yield from dict.fromkeys(offer for offer in (on_demand_best, spot_best) if offer)
