"""What a study is too small to say."""

from collections.abc import Sequence

from w2v_lightning.perf_model.fitted import Fitted, by_configuration, is_same
from w2v_lightning.perf_model.runs import Run

# What a parameter is for, and what would measure it.
NEEDS = {
    "overhead_s": "what does not shrink with more devices ({}): runs that differ much in audio per device and step",
    "launch_s": "how fast the host hands work to a GPU ({}): a run of micro-batches that are small for it",
    "contention": "how processes slow each other down ({}): runs with one process and with several",
    "hop_s": "latency within a host ({}): a run on several devices of one",
    "bytes_per_s": "bandwidth within a host ({}): a run on several devices of one",
    "link_hop_s": "latency between hosts ({}): a run on several of them",
    "link_efficiency": "bandwidth between hosts ({}): a run on several of them",
    "overlap": "how much of the communication computing hides ({}): runs in which it hides some and not all",
    "imbalance": "how unlike devices are ({}): a run on several of them",
    "decode_audio_s_per_s": "how fast audio is decoded ({}): a run that waits for it, with fewer workers",
    "storage_audio_s_per_s": "how fast audio is read ({}): a run that waits for it",
}


def notes(runs: Sequence[Run], fitted: Fitted) -> tuple[str, ...]:
    """What can and what cannot be concluded, in sentences."""
    groups = by_configuration(runs)
    first, *others = fitted.configurations.values()
    found = []
    if all(is_same(first, other) for other in others):
        found.append(
            f"All runs are of one configuration, {' and '.join(groups)}. Its own step time can be told, and the time"
            " that more of the same steps take. How it changes with the number of devices, with the network or with the"
            " loader cannot: all of that is predicted, from specifications and from other machines."
        )
    elif len({run.setup.world_size for run in runs}) == 1:
        found.append(
            "All runs are on the same number of devices: how the step time changes with it is predicted, not measured."
        )
    if all(len(group) == 1 for group in groups.values()):
        found.append(
            "No configuration was run twice: how much runs of the same differ is taken from how well the model fits."
        )
    if unknown := _unknown(fitted):
        found.append(f"Not measured, because no run depends on it enough: {', '.join(unknown)}.")
    return tuple(found)


def _unknown(fitted: Fitted) -> list[str]:
    whose: dict[str, list[str]] = {}
    for name, parameter in fitted.parameters.items():
        what, _, of = name.partition(" of ")
        if parameter.basis == "predicted" and what in NEEDS:
            whose.setdefault(what, []).append(of)
    return [NEEDS[what].format("; ".join(names)) for what, names in whose.items()]
