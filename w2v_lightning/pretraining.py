"""LightningModule that pre-trains wav2vec2 on speech without text.

Shapes: B utterances, M masked frames of a batch, G codebooks of V codes, S splits.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from transformers import Wav2Vec2ForPreTraining

from w2v_lightning.compat.torch import multiply_
from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.masking import warn_of_start_probability
from w2v_lightning.errors import InputError
from w2v_lightning.model import pretraining, wav2vec2
from w2v_lightning.model.sharding import total_norm
from w2v_lightning.model.speed import Speed
from w2v_lightning.model.stored import WaveformFormat
from w2v_lightning.optim import num_updates_of, polynomial_decay
from w2v_lightning.text.vocabulary import Vocabulary
from w2v_lightning.training.base_module import PlannedModule
from w2v_lightning.training.options import TrainingOptions

log = logging.getLogger(__name__)

SCORES = ("loss", "accuracy")  # of all splits together and of each split
TRAINING_LOG = (
    *("train_loss", "train_contrastive_loss", "train_diversity_loss", "train_feature_penalty", "train_accuracy"),
    *("gumbel_temperature", "gradient_norm", "lr"),
)


@dataclass(frozen=True)
class PretrainingOptions(TrainingOptions):
    """Options of Wav2Vec2Pretraining, which documents them."""

    num_negatives: int
    gumbel_temperature: tuple[float, float, float]
    diversity_weight: float
    feature_penalty: float
    feature_grad_mult: float
    feat_quantizer_dropout: float

    def check(self) -> None:
        """Check that these options give a task to learn from.

        Raises:
            InputError: nothing is masked, negatives are missing, or the temperature or the schedule is invalid.
        """
        if not (self.mask_time_prob > 0 and self.mask_time_length > 1):
            raise InputError(
                f"model.mask_time_prob={self.mask_time_prob} and model.mask_time_length={self.mask_time_length}:"
                " pre-training learns only from masked frames; the published values are 0.65 and 10."
            )
        if self.num_negatives < 1:
            raise InputError(
                f"model.num_negatives={self.num_negatives} must be at least 1; the published value is 100."
            )
        start, end, decay = self.gumbel_temperature
        if not (start >= end > 0 and 0 < decay <= 1):
            raise InputError(
                f"model.gumbel_temperature={list(self.gumbel_temperature)} must be a start value, a minimum (above 0,"
                " at most the start value), and a factor (above 0, at most 1); published: [2.0, 0.5, 0.999995]."
            )
        self.schedule(1000)

    def schedule(self, num_updates: int) -> Callable[[int], float]:
        """Return the learning rate factor of each update; see `polynomial_decay`."""
        return polynomial_decay(num_updates, self.warmup)

    def _named_changes(self) -> dict[str, Any]:
        return {
            **super()._named_changes(),
            "num_negatives": self.num_negatives,
            "diversity_loss_weight": self.diversity_weight,
            "feat_quantizer_dropout": self.feat_quantizer_dropout,
        }


class Wav2Vec2Pretraining(PlannedModule):
    """Lightning module for transformers' Wav2Vec2ForPreTraining. The defaults are fairseq's wav2vec2_base_librispeech.

    Masks and negatives are drawn for (seed, epoch, utterance), layer drop for (seed, global step), Gumbel noise and
    dropout for (seed, global step, rank, micro-batch).

    Args:
        pretrained: name of a model on the Hugging Face Hub, or a local model folder, to continue from; null starts from
            random weights.
        config: changes to the model's transformers Wav2Vec2Config, such as {hidden_size: 256}.
        normalise: normalisation of each utterance to zero mean and unit variance, as for the large published models. A
            `pretrained` model has its own setting, which is used instead.
        learning_rate: learning rate at the peak of the schedule.
        warmup: share of all updates in which the learning rate rises from 0; then it falls to 0 linearly.
        adam_betas: decay rates of AdamW's running means of the gradient and of its square.
        adam_eps: constant in AdamW's denominator.
        weight_decay: AdamW's weight decay; biases and norms have none.
        mask_time_prob: share of frames to mask, in fairseq's unit: 0.65 with spans of 10 masks 49 % of the frames.
        mask_time_length: number of frames in a masked span.
        mask_channel_prob: share of channels to mask, in the same unit.
        mask_channel_length: number of channels in a masked span.
        num_negatives: number of negatives per masked frame, drawn from the other masked frames of its utterance.
        gumbel_temperature: start value, minimum, and factor per update of the Gumbel softmax's temperature.
        diversity_weight: weight of the diversity loss, which keeps all codes in use.
        feature_penalty: weight of the mean square of the convolutions' output; fairseq uses 10, transformers 0.
        feature_grad_mult: factor on the gradient of the convolutions.
        layerdrop: probability that a training step skips a transformer layer, the same layers on all devices.
        activation_dropout: dropout inside the feed-forward blocks.
        attention_dropout: dropout on the attention weights.
        hidden_dropout: dropout on the output of each block.
        feat_proj_dropout: dropout on the projected features, the transformer's input (fairseq's dropout_input).
        feat_quantizer_dropout: dropout on the features that are quantised (fairseq's dropout_features).
        seed: seed of layer drop, Gumbel noise and dropout.
        speed: implementations of the costly parts; all of them compute the same.
    """

    model: Wav2Vec2ForPreTraining
    options: PretrainingOptions
    _step_sums: Tensor
    _eval_sums: Tensor
    next_command = "fit --config YOUR.yaml --model.pretrained {model}"  # command to suggest at the end of a run

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        normalise: bool = False,
        learning_rate: float = 5e-4,
        warmup: float = 0.08,
        adam_betas: tuple[float, float] = (0.9, 0.98),
        adam_eps: float = 1e-6,
        weight_decay: float = 0.01,
        mask_time_prob: float = 0.65,
        mask_time_length: int = 10,
        mask_channel_prob: float = 0.0,
        mask_channel_length: int = 64,
        num_negatives: int = 100,
        gumbel_temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        diversity_weight: float = 0.1,
        feature_penalty: float = 0.0,
        feature_grad_mult: float = 0.1,
        layerdrop: float = 0.05,
        activation_dropout: float = 0.0,
        attention_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        feat_proj_dropout: float = 0.1,
        feat_quantizer_dropout: float = 0.1,
        seed: int = 0,
        speed: Speed = Speed(),
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="speed")  # speed belongs to the machine, not to the experiment
        self.options = PretrainingOptions.from_arguments(locals())
        self.speed = speed
        self.options.check()
        changes = self.options.model_config()
        warn_of_start_probability("model.mask_time_prob", mask_time_prob, mask_time_length)
        if pretrained is None:
            self.model, waveforms = pretraining.from_scratch(changes), WaveformFormat(normalise)
        else:
            self.model, waveforms = pretraining.from_pretrained(pretrained, changes)
        self.normalise, self.sample_rate = waveforms
        self.model.train()  # transformers loads in evaluation mode and Lightning keeps it: there would be no noise
        codebooks = self.model.config.num_codevector_groups, self.model.config.num_codevectors_per_group
        # Sums (`Outcome.sums`) on this rank, over the global step so far and over each split of the current scoring.
        self.register_buffer("_step_sums", torch.zeros(5 + codebooks[0] * codebooks[1]), persistent=False)
        self.register_buffer("_eval_sums", torch.zeros(0, len(self._step_sums)), persistent=False)
        self._num_utterances_in_step = 1

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        scores = [f"val_{name}{suffix}" for suffix in ("", *(f"/{s}" for s in val_splits)) for name in SCORES]
        codebooks = [f"train_code_perplexity/{group}" for group in range(self.model.quantizer.num_groups)]
        return [*scores, *TRAINING_LOG, *codebooks]

    @property
    def input_spec(self) -> InputSpec:
        """Description of the input for the data module: frame lengths, masks, negatives; no text is needed."""
        spec = wav2vec2.input_spec(self.model.config, Vocabulary(), self.normalise, self.sample_rate)
        return replace(spec, num_negatives=self.model.config.num_negatives)

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> pretraining.Outcome:
        """Return how well the masked frames are distinguished from their negatives: sums over those frames."""
        return pretraining.run(
            self.model,
            batch,
            feature_grad_mult=self.options.feature_grad_mult,
            dropped_layers=self._dropped_layers(),
            speed=self.speed,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's share of the loss of its global step.

        That loss is the sum over the step's masked frames divided by their number. The number is not in the plan: masks
        are drawn for the decoded frames, perhaps after a change of speed, and only within the utterance. The sum is
        therefore divided by the number of utterances, which is known and keeps gradients in the range of half
        precision, and `on_before_optimizer_step` replaces one divisor by the other.
        """
        self.model.set_gumbel_temperature(self._temperature)  # type: ignore[arg-type]  # annotated int, takes floats
        outcome = self(batch)
        counts = 0.0 if batch.is_filler else 1.0
        self._step_sums += counts * outcome.sums()
        self._num_utterances_in_step = batch.num_utterances_in_step
        share = counts * self._loss(*outcome.losses) / batch.num_utterances_in_step
        # Undo Lightning's division by the number of micro-batches and DDP's average over the ranks.
        return share * batch.num_micro_batches * self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the masked frames of all ranks; the same reduction provides the metrics to log."""
        sums = self.trainer.strategy.reduce(self._step_sums.clone(), reduce_op="sum")
        self._step_sums.zero_()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        num_masked = sums[4].clamp(min=1)
        multiply_(gradients, self._num_utterances_in_step / num_masked)
        if (self.trainer.global_step + 1) % self._log_every_n_steps == 0:
            self._log_training(sums / num_masked, total_norm(gradients))

    def on_fit_start(self) -> None:
        log.info("Model: %.1f M parameters.", sum(p.numel() for p in self.model.parameters()) / 1e6)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self._adamw(self.options.schedule(num_updates_of(self.trainer)))

    # ---- scoring: the same masks and negatives every time ---------------------------------------------------------

    def _start_scoring(self, num_loaders: int) -> None:
        self._eval_sums = self._step_sums.new_zeros(num_loaders, len(self._step_sums))

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        self._eval_sums[dataloader_idx] += self(batch).sums()

    def _log_scores(self, stage: str, loaders: Sequence[Any]) -> None:
        """Log `val_loss` and `val_accuracy` over all splits and, for example, `val_loss/dev-clean` of each split.

        With a single split both are the same: loggers get only the first, callbacks may monitor either.
        """
        sums_S = self.trainer.strategy.reduce(self._eval_sums, reduce_op="sum")
        rows = {"": sums_S.sum(dim=0)}
        rows |= {f"/{loader.dataset.split}": row for loader, row in zip(loaders, sums_S, strict=True)}
        for suffix, row in rows.items():
            contrastive_loss, _, _, accuracy = row[:4] / row[4].clamp(min=1)
            scores = {f"{stage}_loss{suffix}": contrastive_loss, f"{stage}_accuracy{suffix}": accuracy}
            self.log_dict(scores, rank_zero_only=False, logger=not suffix or len(loaders) > 1)

    # ---- the pieces ---------------------------------------------------------------------------------------------

    @property
    def _temperature(self) -> float:
        return pretraining.gumbel_temperature(self.trainer.global_step, *self.options.gumbel_temperature)

    def _loss(self, contrastive_loss: Tensor, diversity_loss: Tensor, feature_penalty: Tensor) -> Tensor:
        options = self.options
        weighted = options.diversity_weight * diversity_loss + options.feature_penalty * feature_penalty
        return contrastive_loss + weighted

    def _log_training(self, means: Tensor, gradient_norm: Tensor) -> None:
        """Log the metrics of the whole global step, per masked frame; losses in nats."""
        contrastive_loss, diversity_loss, feature_penalty, accuracy = means[:4]
        quantizer = self.model.quantizer
        used_G = pretraining.perplexity(means[5:].view(quantizer.num_groups, quantizer.num_vars))
        self.log_dict(
            {
                "train_loss": self._loss(contrastive_loss, diversity_loss, feature_penalty),
                "train_contrastive_loss": contrastive_loss,
                "train_diversity_loss": diversity_loss,
                "train_feature_penalty": feature_penalty,
                "train_accuracy": accuracy,
                **{f"train_code_perplexity/{group}": used for group, used in enumerate(used_G)},
                "gumbel_temperature": quantizer.temperature,
                "gradient_norm": gradient_norm,
                "lr": self.trainer.optimizers[0].param_groups[0]["lr"],
            }
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that `Wav2Vec2ForPreTraining` loads, and that fine-tuning starts from."""
        pretraining.save_pretrained(Path(folder), self.model, self.normalise, self.sample_rate)
