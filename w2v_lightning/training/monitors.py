"""Early check that monitored metrics will be logged; Lightning only checks at the first validation, hours later."""

from collections.abc import Sequence
from typing import Protocol

from lightning.pytorch import Callback, Trainer

from w2v_lightning.errors import InputError, did_you_mean, listed

COUNTED = ("epoch", "step")  # ModelCheckpoint accepts these unlogged: "step" with `mode: max` keeps the newest
PACKAGES = ("lightning", "w2v_lightning")  # packages whose logged names are known; other callbacks may log anything


class Logging(Protocol):
    """Module that names the metrics it logs in training."""

    def logged_names(self, val_splits: Sequence[str]) -> list[str]: ...


def check_monitors(trainer: Trainer, module: Logging, val_splits: Sequence[str]) -> None:
    """Check the monitors of all callbacks of `trainer`, including those that a user has added.

    Without validation there is nothing to check: no model is chosen by a score, and Lightning keeps the last one.

    Raises:
        InputError: see `check_monitor`.
    """
    if not val_splits or trainer.limit_val_batches == 0:
        return
    logged = list(module.logged_names(val_splits))
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    logged += [name for callback in callbacks for name in getattr(callback, "logged_names", ())]
    parts = (module, *callbacks)
    others_log = any(type(part).__module__.partition(".")[0] not in PACKAGES for part in parts)
    for callback in callbacks:
        if monitor := getattr(callback, "monitor", None):
            option = f"{type(callback).__name__}.monitor, in trainer.callbacks"
            check_monitor(getattr(callback, "monitor_option", option), monitor, logged, others_log)


def check_monitor(option: str, monitor: str, logged: Sequence[str], others_log: bool = False) -> None:
    """Check that `monitor` is among the names that will be `logged`.

    Args:
        option: option that sets the monitor, for the message.
        monitor: name of the monitored metric.
        logged: names of the metrics that are known to be logged.
        others_log: True if another callback or module may log other names. Our scores of other splits do not count.

    Raises:
        InputError: nothing will be logged under this name.
    """
    is_ours = monitor.partition("/")[0] in logged
    if monitor not in (*logged, *COUNTED) and (is_ours or not others_log):
        advice = did_you_mean(monitor, logged)
        raise InputError(
            f"{option}: nothing is logged as {monitor!r}{advice or '.'} With these data.val_splits the metrics are"
            f" {listed(list(logged))}."
        )
