"""Final summary of a run: scores, sample transcriptions, output files, next command."""

from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console
from rich.console import Console
from rich.table import Table

from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.evaluation.error_report import Pair, mark_differences
from w2v_lightning.runtime.schema import conforms
from w2v_lightning.telemetry.throughput import Throughput
from w2v_lightning.training.run_folder import output_folder

NUM_PAIRS = 5
RATES = {"wer": "WER", "cer": "CER", "accuracy": "accuracy"}  # names of the metrics that modules log as val_...
AnyCallback = TypeVar("AnyCallback", bound=Callback)


class Scores(TypedDict):
    """State of RunSummary in a checkpoint."""

    before: dict[str, float]
    scores: dict[int, dict[str, float]]


class RunSummary(Callback):
    """Callback that prints WER before and after training, sample utterances, the run's files and the next command.

    In pre-training there is no text: it prints the accuracy among the negatives instead of WER.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or get_console()
        self.before: dict[str, float] = {}  # wer and cer before training
        self.scores: dict[int, dict[str, float]] = {}  # scores of each validation of the run, by global step
        self.pairs: dict[int, list[Pair]] = {}  # sample utterances of each validation since this process started

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if conforms(state_dict, Scores) and all(isinstance(step, int) for step in state_dict["scores"]):
            self.before, self.scores = state_dict["before"], state_dict["scores"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        rates = {name: float(metrics[f"val_{name}"]) for name in RATES if f"val_{name}" in metrics}
        if trainer.sanity_checking:
            if trainer.global_step == 0 and _covers_all(trainer):  # not in a resumed run: it has been trained already
                self.before = rates
        else:
            self.scores[trainer.global_step] = rates
            self.pairs[trainer.global_step] = evenly_spread(getattr(pl_module, "pairs", []), NUM_PAIRS)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = output_folder(trainer)  # collective: all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            step, description = self._validation_to_report(trainer)
            self._print_scores(step, description)
            self._print_missing_validation(trainer)
            self._print_choice(trainer)
            self._print_throughput(trainer)
            self._print_pairs(step)
            self._print_files(trainer, pl_module, folder)

    def _validation_to_report(self, trainer: Trainer) -> tuple[int, str]:
        """Return step and description of the validation of the exported weights, otherwise of the last validation."""
        export = _callback(trainer, ExportBest)
        if export and export.best_step is not None and export.best_step in self.scores:
            return export.best_step, "with the best model"
        last = max(self.scores, default=trainer.global_step)
        is_of_last_weights = last == trainer.global_step and not (export and export.best_step)
        return last, "with the last weights" if is_of_last_weights else f"at the last validation, after step {last:,}"

    def _print_scores(self, step: int, description: str) -> None:
        rates = self.scores.get(step, {})
        if rates:
            self.console.print()
        for name, rate in rates.items():
            before = f"{100 * self.before[name]:.1f} % before training, " if name in self.before else ""
            text = f"Validation {RATES[name]}: {before}[bold]{100 * rate:.1f} %[/bold] {description}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def _print_missing_validation(self, trainer: Trainer) -> None:
        """Print why there is no score: by default Lightning validates at the end of an epoch, which was not reached."""
        if self.scores or not trainer.enable_validation or trainer.global_step != trainer.max_steps:
            return
        self.console.print(
            f"\nNot validated: trainer.max_steps={trainer.max_steps} ended the run before the first validation."
            " Raise it, or set trainer.val_check_interval to fewer micro-batches.",
            highlight=False,
            soft_wrap=True,
        )

    def _print_choice(self, trainer: Trainer) -> None:
        """Print the score that ModelCheckpoint recorded: the validation may be missing in `scores`."""
        export, best = _callback(trainer, ExportBest), best_checkpoint(trainer)
        if export and export.best_step and best and best.monitor and best.best_model_score is not None:
            score = float(best.best_model_score)
            is_rate = best.monitor.removeprefix("val_").split("/")[0] in RATES  # also of one split: val_wer/dev-clean
            shown = f"{100 * score:.1f} %" if is_rate else f"{score:.4g}"
            text = f"Best model: {best.monitor} {shown}, after step {export.best_step:,}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def _print_throughput(self, trainer: Trainer) -> None:
        throughput = _callback(trainer, Throughput)
        if throughput and throughput.train_seconds:
            rate = throughput.audio_seconds / throughput.train_seconds
            self.console.print(
                f"Trained on {throughput.audio_seconds / 3600:.2f} h of audio"
                f" in {throughput.train_seconds / 60:.1f} min: {rate:,.0f} audio-s/s{_peak_memory()}",
                highlight=False,
                soft_wrap=True,
            )

    def _print_pairs(self, step: int) -> None:
        if not self.pairs.get(step):
            return
        self.console.print("\nSample validation utterances, differences in red:")
        table = Table(box=None, show_header=False)
        for name in ("utterance", "", "text"):
            table.add_column(name, no_wrap=name != "text")
        for pair in self.pairs[step]:
            reference, hypothesis = mark_differences(pair)
            table.add_row(pair.id, "reference", reference)
            table.add_row("", "hypothesis", hypothesis)
        self.console.print(table)

    def _print_files(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        export = _callback(trainer, ExportBest)
        model = export.folder if export else None
        events = next((logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        rows = {
            "model": model,
            "config": folder / "config.yaml" if (folder / "config.yaml").exists() else None,
            "checkpoints": getattr(best_checkpoint(trainer), "dirpath", None),
            "TensorBoard": f"tensorboard --logdir {events}" if events else None,
            "next": f"python -m w2v_lightning {_next_command(pl_module, model)}" if model else None,
        }
        self.console.print()
        for name, value in rows.items():
            if value is not None:
                self.console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True)


def evenly_spread(pairs: list[Pair], number: int) -> list[Pair]:
    """Select `number` pairs, evenly spread over the sorted ids: the same ones in every validation."""
    ordered = sorted(pairs, key=lambda pair: pair.id)
    return [ordered[i * len(ordered) // number] for i in range(number)] if len(ordered) > number else ordered


def _next_command(module: LightningModule, model: Path) -> str:
    return cast("str", module.next_command).format(model=model)  # declared by our modules


def _peak_memory() -> str:
    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return f", at most {gib:.2f} GiB of GPU memory" if gib else ""


def _covers_all(trainer: Trainer) -> bool:
    return list(trainer.num_sanity_val_batches) == list(trainer.num_val_batches)


def _callback(trainer: Trainer, callback_class: type[AnyCallback]) -> AnyCallback | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's callback connector
    return next((callback for callback in callbacks if isinstance(callback, callback_class)), None)
