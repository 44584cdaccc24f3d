"""Series of configurations that differ only in their number of devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2v_lightning.perf_model.specs import short_name
from w2v_lightning.study.report.configurations import Configuration, Spread


@dataclass(frozen=True)
class Scaling:
    """Series with at least two numbers of devices, in order."""

    label: str
    configurations: tuple[Configuration, ...]

    @property
    def base(self) -> Configuration:
        """Configuration with the fewest devices."""
        return self.configurations[0]

    def efficiency(self, configuration: Configuration) -> Spread:
        """Return the throughput per device relative to the base's; the error bar includes the error of the base."""
        mean = _per_device(configuration) / _per_device(self.base)
        errors = [
            spread.half / spread.mean
            for spread in (configuration.audio_s_per_s, self.base.audio_s_per_s)
            if spread.half is not None
        ]
        if configuration is self.base or len(errors) < 2:
            return Spread(mean)
        half: float = mean * sum(error**2 for error in errors) ** 0.5
        return Spread(mean, mean - half, mean + half)


def scalings(configurations: Sequence[Configuration]) -> list[Scaling]:
    """Return all series. A single host belongs to the series of every network that connected hosts of its kind."""
    groups: dict[tuple[object, ...], list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault(_kind(configuration), []).append(configuration)
    series = [
        sorted(members, key=lambda configuration: configuration.world_size)
        for group in groups.values()
        for members in _members(group)
        if len({configuration.world_size for configuration in members}) > 1
    ]
    labels = _labels([_traits(members) for members in series])
    return [Scaling(label, tuple(members)) for label, members in zip(labels, series, strict=True)]


def _members(group: list[Configuration]) -> list[list[Configuration]]:
    """Split a group by network; hosts alone are a series if they have several numbers of devices."""
    alone = [configuration for configuration in group if not configuration.setup.link]
    series = [alone] if len({configuration.world_size for configuration in alone}) > 1 else []
    for link in dict.fromkeys(configuration.setup.link for configuration in group if configuration.setup.link):
        connected = [configuration for configuration in group if configuration.setup.link == link]
        sizes = {configuration.setup.devices_per_host for configuration in connected}
        series.append([each for each in alone if each.setup.devices_per_host in sizes] + connected)
    return series


def _kind(configuration: Configuration) -> tuple[object, ...]:
    """Everything that identifies a series except device count and network."""
    options = tuple(sorted((name, str(value)) for name, value in configuration.cell["options"].items()))
    setup = configuration.setup
    return (
        configuration.study,
        configuration.cell["hardware"],
        setup.device,
        setup.precision,
        setup.storage,
        options,
    )


def _traits(members: list[Configuration]) -> dict[str, Any]:
    """Properties in which series may differ, for their labels."""
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
    """Label series by the traits that differ (a single one by its hardware), and by study only if nothing else does."""
    names = [name for name in dict.fromkeys(name for each in traits for name in each) if name != "study"]
    differing = [name for name in names if len({str(each.get(name)) for each in traits}) > 1] or ["hardware"]
    labels = [", ".join(filter(None, (str(each.get(name, "")) for name in differing))) for each in traits]
    if len(set(labels)) == len(labels):
        return labels
    return [f"{each['study']}: {label}" for each, label in zip(traits, labels, strict=True)]


def _per_device(configuration: Configuration) -> float:
    return configuration.audio_s_per_s.mean / configuration.world_size
