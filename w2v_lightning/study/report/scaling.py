"""Series of configurations that differ only in how many devices they have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.study.report.configurations import Configuration, Spread


@dataclass(frozen=True)
class Scaling:
    """At least two numbers of devices, in order."""

    label: str
    configurations: tuple[Configuration, ...]

    @property
    def base(self) -> Configuration:
        return self.configurations[0]

    def efficiency(self, one: Configuration) -> Spread:
        """Audio per second and device, of the base's; its error bar has the base's error in it, too."""
        mean = _per_device(one) / _per_device(self.base)
        errors = [_relative(c.audio_s_per_s) for c in (one, self.base)]
        if one is self.base or None in errors:
            return Spread(mean)
        half = mean * sum(error**2 for error in errors) ** 0.5
        return Spread(mean, mean - half, mean + half)


def scalings(configurations: Sequence[Configuration]) -> list[Scaling]:
    """Every series there is; a single host belongs to that of each network that hosts like it were joined by."""
    groups: dict[tuple, list[Configuration]] = {}
    for one in configurations:
        groups.setdefault(_kind(one), []).append(one)
    found = []
    for group in groups.values():
        found += [members for members in _members(group) if len({one.world_size for one in members}) > 1]
    labels = _labels([_traits(members) for members in found])
    ordered = [tuple(sorted(members, key=lambda one: one.world_size)) for members in found]
    return [Scaling(label, members) for label, members in zip(labels, ordered, strict=True)]


def _members(group: list[Configuration]) -> list[list[Configuration]]:
    alone = [one for one in group if not one.setup.link]
    series = [alone] if len({one.world_size for one in alone}) > 1 else []
    for link in dict.fromkeys(one.setup.link for one in group if one.setup.link):
        joined = [one for one in group if one.setup.link == link]
        sizes = {one.setup.devices_per_host for one in joined}
        series.append([one for one in alone if one.setup.devices_per_host in sizes] + joined)
    return series


def _kind(one: Configuration) -> tuple:
    """All that is no number of devices, and no network between them."""
    options = tuple(sorted((name, str(value)) for name, value in one.cell["options"].items()))
    setup = one.setup
    return one.study, one.cell["hardware"], setup.device, setup.precision, setup.storage, options


def _traits(members: list[Configuration]) -> dict[str, Any]:
    """By which series may differ, for their labels."""
    cell, setup = members[0].cell, members[0].setup
    link = members[-1].setup.link
    return {
        "study": members[0].study,
        "hardware": short_name(setup.device) if cell["hardware"] == "local" else cell["hardware"],
        "precision": setup.precision,
        "link": "" if link == cell["hardware"] else link or "one host",
        "storage": setup.storage,
        **{name: f"{name}={value}" for name, value in cell["options"].items()},
    }


def _labels(traits: list[dict[str, Any]]) -> list[str]:
    """What tells one from another, of a single one its hardware; the study only where nothing else does."""
    names = [name for name in dict.fromkeys(name for one in traits for name in one) if name != "study"]
    differing = [name for name in names if len({str(one.get(name)) for one in traits}) > 1] or ["hardware"]
    labels = [", ".join(filter(None, (str(one.get(name, "")) for name in differing))) for one in traits]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{one['study']}: {label}" for one, label in zip(traits, labels, strict=True)]


def _per_device(one: Configuration) -> float:
    return one.audio_s_per_s.mean / one.world_size


def _relative(spread: Spread) -> float | None:
    return None if spread.half is None else spread.half / spread.mean
