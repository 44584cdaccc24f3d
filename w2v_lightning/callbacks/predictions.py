"""Output of `predict` as JSON lines."""

import json
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from w2v_lightning.evaluation.error_report import Pair
from w2v_lightning.training.run_folder import output_folder


class PredictionWriter(BasePredictionWriter):
    """Callback that writes id, reference and hypothesis of each utterance to LOG_DIR/predictions.jsonl, per rank."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.path = output_folder(trainer) / f"predictions{suffix}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Pair],
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for pair in prediction:
            row = {"id": pair.id, "reference": pair.reference, "hypothesis": pair.hypothesis}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file.close()
        print(f"Transcriptions: {self.path}")
