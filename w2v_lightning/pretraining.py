"""Wav2Vec2Pretraining: how a wav2vec2 model learns from speech without text, from top to bottom.

Shapes: B utterances, M masked frames of a batch, G codebooks of V codes, S splits.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.masking import warn_of_start_probability
from w2v_lightning.errors import InputError
from w2v_lightning.model import pretraining, wav2vec2
from w2v_lightning.model.sharding import total_norm
from w2v_lightning.model.speed import Speed
from w2v_lightning.optim import num_updates_of, polynomial_decay
from w2v_lightning.text.vocabulary import Vocabulary
from w2v_lightning.training.base_module import PlannedModule

log = logging.getLogger(__name__)

SCORES = ("loss", "accuracy")  # over all splits together, and of each
TRAINING_LOG = (
    *("train_loss", "train_contrastive_loss", "train_diversity_loss", "train_feature_penalty", "train_accuracy"),
    *("gumbel_temperature", "gradient_norm", "lr"),
)


class Wav2Vec2Pretraining(PlannedModule):
    """transformers' Wav2Vec2ForPreTraining under Lightning. The defaults are fairseq's wav2vec2_base_librispeech.

    Masks and negatives belong to (seed, epoch, utterance), layer drop to (seed, global step), Gumbel noise
    and dropout to (seed, global step, rank, micro-batch).

    Args:
        pretrained: go on with a model on the Hugging Face hub or in a folder; null starts from random weights.
        config: what differs from the model's own transformers Wav2Vec2Config, such as {hidden_size: 256}.
        normalise: the model hears each utterance with zero mean and unit variance, as the large published models do. A
            `pretrained` model brings its own.
        learning_rate: at the top of the schedule.
        warmup: share of all updates in which the learning rate rises from 0; in the rest it falls to 0 linearly.
        adam_betas: of AdamW.
        adam_eps: of AdamW.
        weight_decay: of AdamW; biases and norms are spared.
        mask_time_prob: frames to mask in fairseq's unit: at 0.65 with spans of 10, 49 % of the frames are masked.
        mask_time_length: frames in a span.
        mask_channel_prob: likewise for channels.
        mask_channel_length: channels in a span.
        num_negatives: other masked frames of the utterance that each masked frame is told from.
        gumbel_temperature: at the start, at the least, and the factor on it at each update.
        diversity_weight: on the loss that keeps all codes in use.
        feature_penalty: on the mean square of the convolutions' output. fairseq has 10, transformers none.
        feature_grad_mult: factor on the gradient that reaches the convolutions.
        layerdrop: probability that a transformer layer is skipped in a training step, on all devices alike.
        activation_dropout: inside the feed-forward blocks.
        attention_dropout: on the attention weights.
        hidden_dropout: on the output of each block.
        feat_proj_dropout: on the projected features, which the transformer sees (fairseq's dropout_input).
        feat_quantizer_dropout: on the features that are quantised (fairseq's dropout_features).
        seed: what layer drop is drawn with.
        speed: which way the costly parts are computed; all ways compute the same.
    """

    next_command = "fit --config YOUR.yaml --model.pretrained {model}"  # what a finished run proposes

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
    ):
        super().__init__()
        self.save_hyperparameters(ignore="speed")  # which belongs to the machine, not to the experiment
        self.speed = speed
        _check_task(mask_time_prob, mask_time_length, num_negatives, gumbel_temperature)
        polynomial_decay(1000, warmup)  # refuses a schedule that cannot be
        overrides = {
            "mask_time_prob": mask_time_prob,
            "mask_time_length": mask_time_length,
            "mask_time_min_masks": 2,
            "mask_feature_prob": mask_channel_prob,
            "mask_feature_length": mask_channel_length,
            "num_negatives": num_negatives,
            "diversity_loss_weight": diversity_weight,
            "layerdrop": layerdrop,
            "activation_dropout": activation_dropout,
            "attention_dropout": attention_dropout,
            "hidden_dropout": hidden_dropout,
            "feat_proj_dropout": feat_proj_dropout,
            "feat_quantizer_dropout": feat_quantizer_dropout,
            **(config or {}),
        }
        warn_of_start_probability("model.mask_time_prob", mask_time_prob, mask_time_length)
        if pretrained is None:
            self.model, self.normalise = pretraining.from_scratch(overrides), normalise
        else:
            self.model, self.normalise = pretraining.from_pretrained(pretrained, overrides)
        self.model.train()  # transformers loads in evaluation mode, and Lightning would leave it so: without noise
        codebooks = self.model.config.num_codevector_groups, self.model.config.num_codevectors_per_group
        # This rank's sums (`Outcome.sums`) over the global step so far, and over each split that is being scored.
        self.register_buffer("_step_sums", torch.zeros(5 + codebooks[0] * codebooks[1]), persistent=False)
        self.register_buffer("_eval_sums", torch.zeros(0, len(self._step_sums)), persistent=False)
        self._num_utterances_in_step = 1

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        scores = [f"val_{name}{suffix}" for suffix in ("", *(f"/{s}" for s in val_splits)) for name in SCORES]
        codebooks = [f"train_code_perplexity/{group}" for group in range(self.model.quantizer.num_groups)]
        return [*scores, *TRAINING_LOG, *codebooks]

    @property
    def input_spec(self) -> InputSpec:
        """What the data module reads: frame lengths, masks, negatives; that no text is needed."""
        spec = wav2vec2.input_spec(self.model.config, Vocabulary(), self.normalise)
        return replace(spec, num_negatives=self.model.config.num_negatives)

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> pretraining.Outcome:
        """How well the batch's masked frames are told from their negatives: sums over those frames."""
        return pretraining.run(
            self.model,
            batch,
            feature_grad_mult=self.hparams.feature_grad_mult,
            dropped_layers=self._dropped_layers(),
            speed=self.speed,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a global step is the sum over its masked frames, over their number.

        That number is not in the plan: masks are drawn for the frames that were really decoded, perhaps after a change
        of speed, and only where the utterance is. So the sum is divided by the number of utterances, which is known and
        keeps gradients in the range of half precision, and `on_before_optimizer_step` exchanges one for the other.
        """
        self.model.set_gumbel_temperature(self._temperature)
        outcome = self(batch)
        counts = 0.0 if batch.is_filler else 1.0
        self._step_sums += counts * outcome.sums()
        self._num_utterances_in_step = batch.num_utterances_in_step
        share = counts * self._loss(*outcome.losses) / batch.num_utterances_in_step
        # Lightning divides by the number of micro-batches and DDP averages over the ranks: both are undone here.
        return share * batch.num_micro_batches * self.trainer.world_size

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """One exchange of numbers per step normalises it, by the masked frames of all ranks, and is its log."""
        sums = self.trainer.strategy.reduce(self._step_sums.clone(), reduce_op="sum")
        self._step_sums.zero_()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        num_masked = sums[4].clamp(min=1)
        torch._foreach_mul_(gradients, self._num_utterances_in_step / num_masked)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self._log_training(sums / num_masked, total_norm(gradients))

    def on_fit_start(self) -> None:
        log.info("Model: %.1f M parameters.", sum(p.numel() for p in self.model.parameters()) / 1e6)

    def configure_optimizers(self) -> dict[str, Any]:
        return self._adamw(polynomial_decay(num_updates_of(self.trainer), self.hparams.warmup))

    # ---- scoring: the same masks and negatives every time ---------------------------------------------------------

    def _start_scoring(self, num_loaders: int) -> None:
        self._eval_sums = self._step_sums.new_zeros(num_loaders, len(self._step_sums))

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        self._eval_sums[dataloader_idx] += self(batch).sums()

    def _log_scores(self, stage: str, loaders: Sequence[Any]) -> None:
        """`val_loss` and `val_accuracy` over all splits together, and `val_loss/dev-clean` by split.

        Of a single split both are the same: loggers and tables have it once, callbacks may monitor either.
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
        return pretraining.gumbel_temperature(self.trainer.global_step, *self.hparams.gumbel_temperature)

    def _loss(self, contrastive_loss: Tensor, diversity_loss: Tensor, feature_penalty: Tensor) -> Tensor:
        options = self.hparams
        weighted = options.diversity_weight * diversity_loss + options.feature_penalty * feature_penalty
        return contrastive_loss + weighted

    def _log_training(self, means: Tensor, gradient_norm: Tensor) -> None:
        """Of the whole global step, per masked frame; losses in nats."""
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
        pretraining.save_pretrained(Path(folder), self.model, self.normalise)


def _check_task(
    mask_time_prob: float, mask_time_length: int, num_negatives: int, gumbel_temperature: tuple[float, float, float]
) -> None:
    if not (mask_time_prob > 0 and mask_time_length > 1):
        raise InputError(
            f"model.mask_time_prob={mask_time_prob} and model.mask_time_length={mask_time_length}: pre-training learns"
            " from masked frames alone; the published values are 0.65 and 10."
        )
    if num_negatives < 1:
        raise InputError(f"model.num_negatives={num_negatives} must be at least 1; the published value is 100.")
    start, end, decay = gumbel_temperature
    if not (start >= end > 0 and 0 < decay <= 1):
        raise InputError(
            f"model.gumbel_temperature={list(gumbel_temperature)} must be a start, an end above 0 and not above it,"
            " and a factor above 0 and at most 1; published: [2.0, 0.5, 0.999995]."
        )
