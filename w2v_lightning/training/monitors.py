"""Whether what a callback monitors will be logged: Lightning finds out at the first validation, perhaps hours later."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer

from w2v_lightning.errors import InputError, did_you_mean, listed

COUNTED = ("epoch", "step")  # ModelCheckpoint knows these unlogged: by "step" and `mode: max` it keeps the newest
PACKAGES = ("lightning", "w2v_lightning")  # what they log is known; another's callback may log anything


def check_monitors(trainer: Trainer, module: LightningModule, val_splits: Sequence[str]) -> None:
    """Of all callbacks of `trainer`, those that a user has added too.

    Without a validation nothing is chosen by a score, and Lightning keeps the last model.

    Raises:
        InputError: see `check_monitor`.
    """
    if not val_splits or trainer.limit_val_batches == 0:
        return
    logged = list(module.logged_names(val_splits))
    logged += [name for callback in trainer.callbacks for name in getattr(callback, "logged_names", ())]
    parts = (module, *trainer.callbacks)
    others_log = any(type(part).__module__.partition(".")[0] not in PACKAGES for part in parts)
    for callback in trainer.callbacks:
        if monitor := getattr(callback, "monitor", None):
            option = f"{type(callback).__name__}.monitor, in trainer.callbacks"
            check_monitor(getattr(callback, "monitor_option", option), monitor, logged, others_log)


def check_monitor(option: str, monitor: str, logged: Sequence[str], others_log: bool = False) -> None:
    """Whether `monitor` is among the names that will be `logged`.

    Args:
        option: that names it.
        others_log: there is a callback, or a module, that may log other names; our scores of other splits it will not.

    Raises:
        InputError: it is not.
    """
    is_ours = monitor.partition("/")[0] in logged
    if monitor not in (*logged, *COUNTED) and (is_ours or not others_log):
        advice = did_you_mean(monitor, logged)
        raise InputError(
            f"{option}: nothing is logged as {monitor!r}{advice or '.'} With these data.val_splits there are"
            f" {listed(logged)}."
        )
