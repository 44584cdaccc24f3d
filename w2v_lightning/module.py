"""Wav2Vec2CTC: how a wav2vec2 model is fine-tuned with CTC, from top to bottom.

Shapes: B utterances, T samples, F frames, V tokens, U labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Wav2Vec2ForCTC

from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.masking import warn_of_start_probability
from w2v_lightning.errors import InputError
from w2v_lightning.evaluation.error_report import Pair
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.ctc import ctc_loss
from w2v_lightning.model.encoder import with_zero_gradients
from w2v_lightning.model.lora import Lora, add_lora, merged
from w2v_lightning.model.speed import Speed
from w2v_lightning.optim import Decay, num_updates_of, tri_stage
from w2v_lightning.text.vocabulary import BUILT_VOCABULARIES, Vocabulary
from w2v_lightning.training.base_module import PlannedModule

log = logging.getLogger(__name__)


class Wav2Vec2CTC(PlannedModule):
    """transformers' Wav2Vec2ForCTC under Lightning. The defaults are fairseq's recipe base_100h.

    Args:
        pretrained: a model on the Hugging Face hub or a local folder; null starts from random weights.
        config: what differs from the model's own transformers Wav2Vec2Config, such as {hidden_size: 256}.
        vocabulary: what the CTC head puts out: by default the model's own, or facebook's 32 tokens; a folder with a
            Hugging Face tokenizer; on the command line "build", the characters of the training transcripts in upper
            case, and "build-mixed", as they are written. Where it is not the model's own, the head is new.
        lora: train a low-rank change of the attention's projections, and the CTC head, instead of all weights; it is
            merged on export. Needs peft (the extra `peft`).
        freeze_feature_encoder: keep the convolutions over the waveform as pre-trained.
        learning_rate: at the top of the schedule.
        warmup: share of all updates in which the learning rate rises from a hundredth of it.
        hold: share of all updates at the top; in the rest it decays.
        final_lr_scale: what it decays to, as a share of the top.
        decay: exponential as in fairseq, or linear as in the paper.
        layer_lr_decay: below 1, lower transformer layers learn more slowly: layer l of L at this to the power of L - l.
        freeze_updates: optimiser updates at the beginning that train the CTC head alone; the schedule counts them too.
        adam_betas: of AdamW.
        adam_eps: of AdamW.
        weight_decay: of AdamW; biases and norms are spared.
        mask_time_prob: frames to mask in fairseq's unit: at 0.65 with spans of 10, 49 % of the frames are masked.
        mask_time_length: frames in a span.
        mask_channel_prob: likewise for channels; at 0.5 with spans of 64, 40 % of them.
        mask_channel_length: channels in a span.
        loss_average: of a step's CTC losses over its "utterance"s, where long ones weigh more (fairseq), or over its
            "label"s. The gradient of the latter is smaller by the labels of an utterance, some 180.
        layerdrop: probability that a transformer layer is skipped in a training step, on all devices alike.
        activation_dropout: inside the feed-forward blocks.
        attention_dropout: on the attention weights.
        hidden_dropout: on the output of each block.
        feat_proj_dropout: on the projected features.
        final_dropout: before the CTC head.
        gradient_checkpointing: compute the transformer twice instead of keeping its activations: less memory, slower.
        hf_compat: score as transformers does, whose base models see the padding; for old checkpoints.
        seed: what layer drop is drawn with.
        speed: which way the costly parts are computed; all ways compute the same.
    """

    next_command = "transcribe --model {model} YOUR.wav"  # what a finished run proposes

    def __init__(
        self,
        pretrained: str | None = "facebook/wav2vec2-base",
        config: dict[str, Any] | None = None,
        vocabulary: Vocabulary | str | None = None,
        lora: Lora | None = None,
        freeze_feature_encoder: bool = True,
        learning_rate: float = 3e-5,
        warmup: float = 0.1,
        hold: float = 0.4,
        final_lr_scale: float = 0.05,
        decay: Decay = "exponential",
        layer_lr_decay: float = 1.0,
        freeze_updates: int = 0,
        adam_betas: tuple[float, float] = (0.9, 0.98),
        adam_eps: float = 1e-8,
        weight_decay: float = 0.0,
        mask_time_prob: float = 0.65,
        mask_time_length: int = 10,
        mask_channel_prob: float = 0.5,
        mask_channel_length: int = 64,
        loss_average: Literal["utterance", "label"] = "utterance",
        layerdrop: float = 0.1,
        activation_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        feat_proj_dropout: float = 0.0,
        final_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        hf_compat: bool = False,
        seed: int = 0,
        speed: Speed = Speed(),
    ):
        super().__init__()
        self.save_hyperparameters(ignore="speed")  # which belongs to the machine, not to the experiment
        self.speed = speed
        tri_stage(1000, warmup, hold, final_lr_scale, decay)  # refuses an impossible one before anything is loaded
        overrides = {
            "mask_time_prob": mask_time_prob,
            "mask_time_length": mask_time_length,
            "mask_time_min_masks": 2,
            "mask_feature_prob": mask_channel_prob,
            "mask_feature_length": mask_channel_length,
            "layerdrop": layerdrop,
            "activation_dropout": activation_dropout,
            "attention_dropout": attention_dropout,
            "hidden_dropout": hidden_dropout,
            "feat_proj_dropout": feat_proj_dropout,
            "final_dropout": final_dropout,
            **(config or {}),
        }
        for name, key in (("time", "time"), ("channel", "feature")):
            unit = overrides[f"mask_{key}_prob"], overrides[f"mask_{key}_length"]
            warn_of_start_probability(f"model.mask_{name}_prob", *unit)
        self.model, self.vocabulary, self.normalise = _build(pretrained, overrides, _vocabulary(vocabulary))
        self.model.train()  # transformers loads in evaluation mode, and Lightning would leave it so: without dropout
        if vocabulary is not None:  # as plain values, so that a checkpoint needs neither manifest nor folder
            self.hparams.vocabulary = asdict(self.vocabulary)
        wav2vec2.freeze(self.model, feature_encoder=freeze_feature_encoder)
        if lora is not None:
            lora = Lora(**lora) if isinstance(lora, Mapping) else lora  # a checkpoint holds a mapping
            add_lora(self.model, lora)
            self.hparams.lora = asdict(lora)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.counts: list[ErrorCounts] = []  # this rank's, of each validation or test split
        self._eval_loss = torch.zeros(2, dtype=torch.float64)  # this rank's sum, and its number of utterances
        self.pairs: list[Pair] = []  # this rank's utterances of the last validation or test
        self.register_buffer("_step_sums", torch.zeros(2), persistent=False)  # loss and characters of the global step

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        by_split = [f"val_{rate}/{split}" for split in val_splits for rate in ("wer", "cer")]
        return ["val_wer", "val_cer", "val_loss", *by_split, "train_loss", "train_loss_per_char", "lr"]

    @property
    def input_spec(self) -> InputSpec:
        """What the data module reads: vocabulary, frame lengths, masks."""
        spec = wav2vec2.input_spec(self.model.config, self.vocabulary, self.normalise)
        return replace(spec, coarse_lengths=not self.hparams.hf_compat)  # whose models hear the padding

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, F, V); masked if the batch carries masks."""
        return wav2vec2.ctc_logits(
            self.model,
            batch.input_values().to(self.model.dtype),
            batch.num_samples_B,
            batch.time_mask_BF,
            batch.channel_mask_BC,
            dropped_layers=self._dropped_layers(),
            hf_compat=self.hparams.hf_compat,
            is_frozen=self._encoder_is_frozen,
            speed=self.speed,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a global step is the sum of its utterances' CTC losses over their number (fairseq's sentence
        average), or over that of their labels. Both numbers are known from the plan, so every micro-batch on every rank
        contributes its exact share."""
        share = self._ctc(self(batch), batch).sum() / self._divisor(batch)
        if batch.is_filler:
            share = 0.0 * share
        self._log_training(share.detach(), batch)
        if self._encoder_is_frozen and self.trainer.world_size > 1:
            # DDP waits for the gradients of all that it was built with.
            share = with_zero_gradients(share, self.model.wav2vec2)
        # Lightning divides by the number of micro-batches and DDP averages over the ranks: both are undone here.
        return share * batch.num_micro_batches * self.trainer.world_size

    def on_after_backward(self) -> None:
        if self._encoder_is_frozen:
            # None, not zero: AdamW would decay the weights, and count steps that they did not make.
            self.model.wav2vec2.zero_grad(set_to_none=True)

    def on_fit_start(self) -> None:
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, requires_grad in sizes if requires_grad)
        which = ": LoRA and the CTC head" if self.hparams.lora else ""
        log.info("Model: %.1f M parameters, %.1f M of them trained%s.", total / 1e6, trained / 1e6, which)
        if self.hparams.freeze_updates:
            log.info("The first %d updates train the CTC head alone.", self.hparams.freeze_updates)

    def configure_optimizers(self) -> dict[str, Any]:
        options = self.hparams
        schedule = (options.warmup, options.hold, options.final_lr_scale, options.decay)
        return self._adamw(tri_stage(num_updates_of(self.trainer), *schedule), options.layer_lr_decay)

    def check_head(self) -> None:
        """For what scores a model as it was loaded, without a checkpoint of training.

        Raises:
            InputError: the weights of its CTC head are random.
        """
        pretrained = self.hparams.pretrained
        remedy = "name a fine-tuned model, or the path of a checkpoint with --ckpt_path"
        if pretrained is None:
            raise InputError(f"model.pretrained: null gives random weights, and they random letters; {remedy}.")
        wav2vec2.check_head("model.pretrained", pretrained, remedy, self.vocabulary)

    # ---- scoring ------------------------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[Pair]:
        return self._transcribe(self(batch), batch)

    def _start_scoring(self, num_loaders: int) -> None:
        self.counts = [ErrorCounts() for _ in range(num_loaders)]
        self._eval_loss.zero_()
        self.pairs = []

    def _score(self, batch: Batch, dataloader_idx: int) -> None:
        logits_BFV = self(batch)
        pairs = self._transcribe(logits_BFV, batch)
        self.counts[dataloader_idx].update([p.hypothesis for p in pairs], [p.reference for p in pairs])
        self._eval_loss += torch.tensor([float(self._ctc(logits_BFV, batch).sum()), len(batch)])
        self.pairs += pairs

    def _transcribe(self, logits_BFV: Tensor, batch: Batch) -> list[Pair]:
        best_BF = logits_BFV.argmax(dim=-1).tolist()
        hypotheses = [
            self.vocabulary.decode(best_F[:num_frames])
            for best_F, num_frames in zip(best_BF, batch.num_frames_B.tolist(), strict=True)
        ]
        return [Pair(*row) for row in zip(batch.ids, batch.texts, hypotheses, strict=True)]

    def _log_scores(self, stage: str, loaders: Sequence[Any]) -> None:
        """`val_wer` over all splits together, and `val_wer/dev-clean` by split.

        Of a single split both are the same: loggers and tables have it once, callbacks may monitor either.
        """
        counts_S4, (loss, num_utterances) = self._scores_of_all_ranks()
        scores = {f"{stage}_{name}": rate for name, rate in error_rates(counts_S4.sum(dim=0)).items()}
        scores[f"{stage}_loss"] = float(loss / num_utterances)
        self.log_dict(scores, rank_zero_only=False)
        for loader, split_counts in zip(loaders, counts_S4, strict=True):
            split = loader.dataset.split
            scores = {f"{stage}_{name}/{split}": rate for name, rate in error_rates(split_counts).items()}
            self.log_dict(scores, rank_zero_only=False, logger=len(loaders) > 1)

    def _scores_of_all_ranks(self) -> tuple[Tensor, Tensor]:
        """ErrorCounts of each split (S, 4); the sum of losses and the number of utterances. All in one exchange, of
        float64, which holds counts exactly."""
        sums = torch.cat([*(split_counts.sums for split_counts in self.counts), self._eval_loss])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        return sums[:-2].view(-1, 4), sums[-2:]

    # ---- the pieces ---------------------------------------------------------------------------------------------

    @property
    def _encoder_is_frozen(self) -> bool:
        return self.training and self.global_step < self.hparams.freeze_updates

    def _divisor(self, batch: Batch) -> int:
        return batch.num_labels_in_step if self.hparams.loss_average == "label" else batch.num_utterances_in_step

    def _ctc(self, logits_BFV: Tensor, batch: Batch) -> Tensor:
        of_labels = batch.labels_BU, batch.num_labels_B
        return ctc_loss(logits_BFV, batch.num_frames_B, *of_labels, self.vocabulary.blank_id, self.speed)

    def _log_training(self, share: Tensor, batch: Batch) -> None:
        """Loss of the whole global step, over all its micro-batches and ranks: per utterance and per character."""
        num_labels = 0 if batch.is_filler else int(batch.num_labels_B.sum())  # which lie on the host
        self._step_sums += torch.stack([share * self._divisor(batch), share.new_full((), num_labels)])
        if not batch.is_last_of_step:
            return
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:
            loss, characters = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum")
            self.log("train_loss", loss / batch.num_utterances_in_step)
            self.log("train_loss_per_char", loss / characters)
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self._step_sums.zero_()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that `AutoModelForCTC` and `AutoProcessor` load."""
        wav2vec2.save_pretrained(Path(folder), merged(self.model), self.vocabulary, self.normalise)


def _vocabulary(given: Vocabulary | Mapping[str, Any] | str | None) -> Vocabulary | None:
    """What the option asks for; None: what the model brings. A checkpoint holds a mapping."""
    if isinstance(given, Mapping):
        return Vocabulary(**{**given, "tokens": tuple(given["tokens"])})
    if not isinstance(given, str):
        return given
    if given in BUILT_VOCABULARIES:
        raise InputError(
            f"model.vocabulary={given} is for the command line, which has the training transcripts; in a script give"
            " w2v_lightning.text.vocabulary.Vocabulary.build(texts)."
        )
    return Vocabulary.load(given)


def _build(
    pretrained: str | None, config: Mapping[str, Any], vocabulary: Vocabulary | None
) -> tuple[Wav2Vec2ForCTC, Vocabulary, bool]:
    if pretrained is not None:
        return wav2vec2.from_pretrained(pretrained, config, vocabulary)
    vocabulary = vocabulary or Vocabulary()
    return wav2vec2.from_scratch(config, vocabulary), vocabulary, True
