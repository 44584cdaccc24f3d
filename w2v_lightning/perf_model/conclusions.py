"""Conclusions that a study is too small to support."""

from collections.abc import Sequence

from w2v_lightning.perf_model.fitted import Fitted, by_configuration, is_same
from w2v_lightning.perf_model.runs import Run

# Meaning of each kind of parameter, and the runs that would measure it.
NEEDS = {
    "overhead_s": "overhead of a step ({}): needs runs with very different audio per device and step",
    "launch_s": "time of the host to launch a micro-batch on a GPU ({}): needs a run with small micro-batches",
    "contention": "slowdown of processes by each other ({}): needs runs with one process and with several",
    "hop_s": "latency within a host ({}): needs a run on several devices of one host",
    "bytes_per_s": "bandwidth within a host ({}): needs a run on several devices of one host",
    "link_hop_s": "latency between hosts ({}): needs a run on several hosts",
    "link_efficiency": "bandwidth between hosts ({}): needs a run on several hosts",
    "overlap": "share of communication that computing hides ({}): needs runs in which it hides some but not all",
    "imbalance": "difference between devices ({}): needs a run on several devices",
    "decode_audio_s_per_s": "rate of decoding audio ({}): needs a run with so few workers that it waits for them",
    "storage_audio_s_per_s": "rate of reading audio ({}): needs a run that waits for it",
}


def notes(runs: Sequence[Run], fitted: Fitted) -> tuple[str, ...]:
    """Return sentences on what the runs do not allow to conclude."""
    groups = by_configuration(runs)
    first, *others = fitted.configurations.values()
    sentences = []
    if all(is_same(first, other) for other in others):
        sentences.append(
            f"All runs are of one configuration: {' and '.join(groups)}. They measure its step time, and so the time of"
            " more such steps. They cannot show how the step time changes with the number of devices, the network or"
            " the loader: all of that is predicted from specifications and from other machines."
        )
    elif len({run.setup.world_size for run in runs}) == 1:
        sentences.append(
            "All runs are on the same number of devices, so the effect of that number on the step time is predicted,"
            " not measured."
        )
    if all(len(group) == 1 for group in groups.values()):
        sentences.append(
            "No configuration was run twice, so the variation between repetitions is estimated from how well the model"
            " fits."
        )
    if unknown := _unknown(fitted):
        sentences.append(f"Not measured, because no run depends on it enough: {', '.join(unknown)}.")
    return tuple(sentences)


def _unknown(fitted: Fitted) -> list[str]:
    owners: dict[str, list[str]] = {}
    for name, parameter in fitted.parameters.items():
        kind, _, owner = name.partition(" of ")
        if parameter.basis == "predicted" and kind in NEEDS:
            owners.setdefault(kind, []).append(owner)
    return [NEEDS[kind].format("; ".join(names)) for kind, names in owners.items()]
