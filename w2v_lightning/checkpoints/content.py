"""Content of a checkpoint: what the commands read from it, checked as a whole before any of it is used."""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from packaging.version import InvalidVersion, Version
from torch import Tensor

from w2v_lightning.checkpoints import files
from w2v_lightning.checkpoints.history import Segment
from w2v_lightning.runtime.schema import Mismatch, MissingKey, Rule, check


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


class Counts(TypedDict):
    """Counts of Lightning's loops, of epochs or batches."""

    ready: int
    started: int
    processed: int
    completed: int


class Progress(TypedDict):
    total: Counts
    current: Counts


class Updates(TypedDict):
    """Counts of optimiser updates."""

    ready: int
    completed: int


class UpdateProgress(TypedDict):
    total: Updates
    current: Updates


class Resets(TypedDict):
    """Counts of gradients that are set to zero."""

    ready: int
    started: int
    completed: int


class ResetProgress(TypedDict):
    total: Resets
    current: Resets


class OptimizerProgress(TypedDict):
    step: UpdateProgress
    zero_grad: ResetProgress


class OptimProgress(TypedDict):
    optimizer: OptimizerProgress


FitLoop = TypedDict(
    "FitLoop",
    {
        "epoch_progress": Progress,
        "epoch_loop.batch_progress": Progress,
        "epoch_loop.val_loop.batch_progress": Progress,
        "epoch_loop.automatic_optimization.optim_progress": OptimProgress,
        "epoch_loop.scheduler_progress": UpdateProgress,
        "epoch_loop.manual_optimization.optim_step_progress": NotRequired[UpdateProgress],
        "epoch_loop.state_dict": NotRequired[dict[str, Any]],
    },
)


class Loops(TypedDict):
    fit_loop: FitLoop


class DataState(TypedDict):
    """Position in the plan; see data/position.py."""

    epoch: int
    epoch_is_over: bool
    steps_done: int
    num_micro_batches: int
    fingerprint: dict[str, Any]


class Run(TypedDict):
    """Origin of the run; see `history.RunHistory`."""

    config: NotRequired[str]
    segments: NotRequired[list[Segment]]


class Moments(TypedDict):
    """State of AdamW for a parameter."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Group(TypedDict):
    params: list[int]


class OptimizerState(TypedDict):
    state: dict[int, Moments]
    param_groups: list[Group]


class SchedulerState(TypedDict):
    last_epoch: int
    base_lrs: list[float]
    lr_lambdas: list[dict[str, Any] | None]


_Lightning = TypedDict(
    "_Lightning", {"pytorch-lightning_version": Annotated[str, Rule("a version such as 2.6.4", _is_version)]}
)


class Weights(_Lightning):
    """Keys that every command reads."""

    epoch: int
    global_step: int
    state_dict: dict[str, Tensor]
    hyper_parameters: NotRequired[dict[str, Any]]
    callbacks: NotRequired[dict[str, dict[str, Any]]]
    loops: NotRequired[dict[str, dict[str, Any]]]
    run: NotRequired[Run]


class TrainingState(Weights):
    """Keys that `fit` reads, too, to resume."""

    optimizer_states: list[OptimizerState]
    lr_schedulers: list[SchedulerState]
    loops: Loops  # type: ignore[misc]  # narrower than what every command needs
    LibriSpeechDataModule: NotRequired[DataState]
    current_model_state: NotRequired[dict[str, Tensor]]  # beside an average in `state_dict`
    averaging_state: NotRequired[dict[str, Tensor]]


class OtherTrainingState(TrainingState):
    """The same for a module with another optimiser than AdamW, whose state is not checked."""

    optimizer_states: list[dict[str, Any]]  # type: ignore[misc]  # wider
    lr_schedulers: list[dict[str, Any]]  # type: ignore[misc]


def find_fault(checkpoint: Any, schema: type = TrainingState) -> str | None:
    """Describe what a loaded checkpoint lacks, or holds instead of what `schema` says; None if it is complete."""
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__} instead of the state of a run"
    if schema is TrainingState and _has_other_optimizer(checkpoint):
        schema = OtherTrainingState
    try:
        check(checkpoint, schema)
    except MissingKey as missing:
        return f"it lacks {missing.place}"
    except Mismatch as mismatch:
        return " ".join(f"its content is wrong: {mismatch}".replace("a JSON object", "a mapping").split())
    return _training_fault(checkpoint) if schema is TrainingState else None


def _has_other_optimizer(checkpoint: Mapping[str, Any]) -> bool:
    """Return True if the states of the optimiser have nothing of AdamW's."""
    optimizers = checkpoint.get("optimizer_states")
    states = (
        [each.get("state") for each in optimizers if isinstance(each, dict)] if isinstance(optimizers, list) else []
    )
    moments = [each for state in states if isinstance(state, dict) for each in state.values()]
    names = {name for each in moments if isinstance(each, dict) for name in each}
    return bool(names) and names.isdisjoint({"exp_avg", "exp_avg_sq"})


def _training_fault(checkpoint: dict[str, Any]) -> str | None:
    """Describe values of the right types that contradict each other."""
    states = checkpoint["optimizer_states"]
    is_new = checkpoint["global_step"] == 0  # nothing has been updated yet
    if not states or not all(each["param_groups"] and (each["state"] or is_new) for each in states):
        return "it lacks the state of the optimiser"
    for state in states:
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        if len(set(numbers)) < len(numbers) or not state["state"].keys() <= set(numbers):
            return "the state of its optimiser belongs to other parameters"
        moments = state["state"].values()
        if any(each["exp_avg"].shape != each["exp_avg_sq"].shape or each["step"].numel() != 1 for each in moments):
            return "the state of its optimiser has tensors of the wrong shape"
    if ("current_model_state" in checkpoint) != ("averaging_state" in checkpoint):
        return "it holds only a part of the state of averaged weights"
    return None


def find_problem(path: str, schema: type = TrainingState) -> str | None:
    """Read a whole checkpoint and describe what is wrong with its bytes or its content; None if it can be used.

    A checkpoint of another program has no checksum: it is complete if it can be loaded and has what `schema` says.

    Raises:
        InputError: it cannot be loaded.
    """
    damage = files.find_damage(path)
    return damage if damage not in (None, files.NO_CHECKSUM) else find_fault(files.peek(path), schema)


def find_misfit(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str | None:
    """Describe the first of a module's `weights` that a checkpoint lacks or holds in another shape; None if all fit."""
    for key in ("state_dict", "current_model_state"):
        saved = checkpoint.get(key, weights)
        for name, tensor in weights.items():
            if name not in saved:
                return f"it lacks the weights {name}"
            if saved[name].shape != tensor.shape:
                return f"its weights {name} have the shape {list(saved[name].shape)} instead of {list(tensor.shape)}"
    return None
