"""The last thing a user reads: what the run reached, what it hears, where everything lies, what to do next."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.checkpoints.best import best_checkpoint
from w2v_lightning.evaluation.error_report import Pair, marked
from w2v_lightning.telemetry.throughput import Throughput
from w2v_lightning.training.run_folder import output_folder

NUM_PAIRS = 5
RATES = {"wer": "WER", "cer": "CER", "accuracy": "accuracy"}  # what a module logs as val_...


class RunSummary(Callback):
    """Prints WER before and after, a few utterances with their errors, the run's files, and the next command.

    A model in pre-training has no WER and no words: it is the accuracy among the negatives.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.before: dict[str, float] = {}  # wer and cer before training
        self.scores: dict[int, dict[str, float]] = {}  # of each validation, by the global step, since the run began
        self.pairs: dict[int, list[Pair]] = {}  # likewise, since this process did

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.scores = state_dict["before"], state_dict["scores"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        rates = {name: float(metrics[f"val_{name}"]) for name in RATES if f"val_{name}" in metrics}
        if trainer.sanity_checking:
            if trainer.global_step == 0 and _covers_all(trainer):  # of a run that goes on, it is not before training
                self.before = rates
        else:
            self.scores[trainer.global_step] = rates
            self.pairs[trainer.global_step] = evenly_spread(getattr(pl_module, "pairs", []), NUM_PAIRS)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = output_folder(trainer)  # asks all ranks
        if trainer.is_global_zero and not trainer.fast_dev_run:
            step, what = self._validation_to_tell(trainer)
            self._print_scores(step, what)
            self._print_choice(trainer)
            self._print_throughput(trainer)
            self._print_pairs(step)
            self._print_places(trainer, pl_module, folder)

    def _validation_to_tell(self, trainer: Trainer) -> tuple[int, str]:
        """That of the weights which were exported, where there was one, or else the last; its step, and in words."""
        export = _callback(trainer, ExportBest)
        if export and export.best_step in self.scores:
            return export.best_step, "with the best model"
        last = max(self.scores, default=trainer.global_step)
        is_of_last_weights = last == trainer.global_step and not (export and export.best_step)
        return last, "with the last weights" if is_of_last_weights else f"at the last validation, after step {last:,}"

    def _print_scores(self, step: int, what: str) -> None:
        rates = self.scores.get(step, {})
        if rates:
            self.console.print()
        for name, rate in rates.items():
            before = f"{100 * self.before[name]:.1f} % before training, " if name in self.before else ""
            text = f"Validation {RATES[name]}: {before}[bold]{100 * rate:.1f} %[/bold] {what}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def _print_choice(self, trainer: Trainer) -> None:
        """By the checkpoint's own account, which is there also where no validation of the best step is known."""
        export, best = _callback(trainer, ExportBest), best_checkpoint(trainer)
        if export and export.best_step and best.best_model_score is not None:
            score = float(best.best_model_score)
            is_rate = best.monitor.removeprefix("val_").split("/")[0] in RATES  # val_wer/dev-clean is one of a split
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
        self.console.print("\nSome of the validation utterances, differences in red:")
        table = Table(box=None, show_header=False)
        for name in ("utterance", "", "text"):
            table.add_column(name, no_wrap=name != "text")
        for pair in self.pairs[step]:
            reference, hypothesis = marked(pair)
            table.add_row(pair.id, "said", reference)
            table.add_row("", "heard", hypothesis)
        self.console.print(table)

    def _print_places(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        export = _callback(trainer, ExportBest)
        model = export.folder if export else None
        events = next((each.log_dir for each in trainer.loggers if isinstance(each, TensorBoardLogger)), None)
        rows = {
            "model": model,
            "config": folder / "config.yaml" if (folder / "config.yaml").exists() else None,
            "checkpoints": getattr(best_checkpoint(trainer), "dirpath", None),
            "TensorBoard": f"tensorboard --logdir {events}" if events else None,
            "next": f"python -m w2v_lightning {pl_module.next_command.format(model=model)}" if model else None,
        }
        self.console.print()
        for name, value in rows.items():
            if value is not None:
                self.console.print(f"{name:<12} {value}", highlight=False, soft_wrap=True)


def evenly_spread(pairs: list[Pair], number: int) -> list[Pair]:
    """`number` of `pairs`, evenly spread over their sorted ids: the same ones in every validation."""
    ordered = sorted(pairs, key=lambda pair: pair.id)
    return [ordered[i * len(ordered) // number] for i in range(number)] if len(ordered) > number else ordered


def _peak_memory() -> str:
    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return f", at most {gib:.2f} GiB of GPU memory" if gib else ""


def _covers_all(trainer: Trainer) -> bool:
    return list(trainer.num_sanity_val_batches) == list(trainer.num_val_batches)


def _callback(trainer: Trainer, kind: type[Callback]) -> Callback | None:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)
