"""LightningModule that fine-tunes wav2vec2 with CTC.

Shapes: B utterances, T samples, F frames, V tokens, U labels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import Wav2Vec2ForCTC

from w2v_lightning.data.batch import Batch, InputSpec
from w2v_lightning.data.masking import warn_of_start_probability
from w2v_lightning.errors import InputError
from w2v_lightning.evaluation.error_report import Pair
from w2v_lightning.evaluation.wer import ErrorCounts, error_rates
from w2v_lightning.model import adapters, wav2vec2
from w2v_lightning.model.ctc import ctc_loss
from w2v_lightning.model.encoder import with_zero_gradients
from w2v_lightning.model.graphs import Graphs
from w2v_lightning.model.lora import Lora, add_lora, merged
from w2v_lightning.model.speed import Speed
from w2v_lightning.optim import Decay, num_updates_of
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import Vocabulary
from w2v_lightning.training.base_module import PlannedModule
from w2v_lightning.training.fine_tuning_options import FineTuningOptions, build, rules_of, vocabulary_of, with_rules

log = logging.getLogger(__name__)


class Wav2Vec2CTC(PlannedModule):
    """Lightning module for transformers' Wav2Vec2ForCTC. The defaults are fairseq's recipe base_100h.

    Args:
        pretrained: name of a model on the Hugging Face Hub, or a local model folder; null starts from random weights.
        config: changes to the model's transformers Wav2Vec2Config, such as {hidden_size: 256}.
        vocabulary: output tokens of the CTC head; null keeps those of the model, or facebook's 32 tokens if it has
            none. A folder with a Hugging Face tokenizer; on the command line also "build", the characters of the
            training transcripts in upper case, or "build-mixed", the same in their own case. If the tokens are not the
            model's own, the head is new.
        target_lang: language of a model with language adapters (MMS), such as "eng": its adapter and vocabulary are
            used, and exported. Given with `vocabulary`, it may be a language that the model lacks.
        adapter_only: training of the language adapter and the CTC head alone; everything else is frozen.
        lora: LoRA training: low-rank changes of the attention projections, and the CTC head, are trained instead of all
            weights. Merged on export. Needs peft (the extra `peft`).
        freeze_feature_encoder: freezing of the feature encoder: the convolutions over the waveform are not trained.
        learning_rate: learning rate at the peak of the schedule.
        warmup: share of all updates in which the learning rate rises, from a hundredth of the peak.
        hold: share of all updates at the peak; in the remaining ones the learning rate decays.
        final_lr_scale: learning rate at the end of the decay, as a share of the peak.
        decay: shape of the decay: exponential as in fairseq, or linear as in the paper.
        layer_lr_decay: learning rate factor per layer: layer l of L learns with this to the power of L - l; 1 is off.
        freeze_updates: number of first updates that train only the CTC head; the schedule includes them.
        adam_betas: decay rates of AdamW's running means of the gradient and of its square.
        adam_eps: constant in AdamW's denominator.
        weight_decay: AdamW's weight decay; biases and norms have none.
        mask_time_prob: share of frames to mask, in fairseq's unit: 0.65 with spans of 10 masks 49 % of the frames.
        mask_time_length: number of frames in a masked span.
        mask_channel_prob: share of channels to mask, in the same unit: 0.5 with spans of 64 masks 40 % of the channels.
        mask_channel_length: number of channels in a masked span.
        loss_average: unit that a step's CTC loss is averaged over: "utterance", where long ones weigh more (fairseq),
            or "label", where the gradient is smaller by the number of labels in an utterance, about 180.
        layerdrop: probability that a training step skips a transformer layer, the same layers on all devices.
        activation_dropout: dropout inside the feed-forward blocks.
        attention_dropout: dropout on the attention weights.
        hidden_dropout: dropout on the output of each block.
        feat_proj_dropout: dropout on the projected features.
        final_dropout: dropout before the CTC head.
        gradient_checkpointing: recomputation of the transformer's activations in the backward pass instead of storing
            them: less memory, slower.
        hf_compat: same output for padded batches as transformers, whose base models see the padding; for old
            checkpoints.
        seed: seed of layer drop and dropout.
        speed: implementations of the costly parts; all of them compute the same.
        text: rules for the writing of transcripts, exported with the model; on the command line, those of `data.text`.
    """

    model: Wav2Vec2ForCTC
    options: FineTuningOptions
    _step_sums: Tensor
    next_command = "transcribe --model {model} YOUR.wav"  # command to suggest at the end of a run

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
        target_lang: str | None = None,
        adapter_only: bool = False,
        seed: int = 0,
        speed: Speed = Speed(),
        text: TextRules | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="speed")  # speed belongs to the machine, not to the experiment
        self.options = FineTuningOptions.from_arguments(locals())
        self.speed = speed
        self.options.schedule(1000)  # raises the error of an invalid schedule before anything is loaded
        changes = self.options.model_config()
        for name, key in (("time", "time"), ("channel", "feature")):
            warn_of_start_probability(
                f"model.mask_{name}_prob", changes[f"mask_{key}_prob"], changes[f"mask_{key}_length"]
            )
        self.model, own, waveforms = build(pretrained, changes, vocabulary_of(vocabulary), target_lang)
        self.normalise, self.sample_rate = waveforms
        self.vocabulary = with_rules(own, text)
        if not self.model.config.apply_spec_augment and max(mask_time_prob, mask_channel_prob) > 0:
            log.info("Nothing is masked in training: the model's config has apply_spec_augment=false.")
        self.model.train()  # transformers loads in evaluation mode and Lightning keeps it: there would be no dropout
        if vocabulary is not None:  # saved as plain values, so that a checkpoint needs neither manifest nor folder
            self.hparams["vocabulary"] = self.vocabulary.values()
        if text is not None:
            self.hparams["text"] = asdict(rules_of(text))
        wav2vec2.freeze(self.model, feature_encoder=freeze_feature_encoder)
        if adapter_only:
            adapters.train_adapter_only(self.model)
        if lora is not None:
            lora = Lora(**lora) if isinstance(lora, Mapping) else lora  # checkpoints hold a mapping
            add_lora(self.model, lora)
            self.hparams["lora"] = asdict(lora)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.graphs = Graphs(self.model.wav2vec2, speed)
        self.counts: list[ErrorCounts] = []  # of each validation or test split, on this rank
        self._eval_loss = torch.zeros(2, dtype=torch.float64)  # sum of losses and number of utterances, on this rank
        self.pairs: list[Pair] = []  # utterances of the last validation or test, on this rank
        self.register_buffer("_step_sums", torch.zeros(2), persistent=False)  # loss and characters of the global step

    def logged_names(self, val_splits: Sequence[str]) -> list[str]:
        by_split = [f"val_{rate}/{split}" for split in val_splits for rate in ("wer", "cer")]
        return ["val_wer", "val_cer", "val_loss", *by_split, "train_loss", "train_loss_per_char", "lr"]

    @property
    def input_spec(self) -> InputSpec:
        """Description of the input for the data module: vocabulary, frame lengths, masks."""
        spec = wav2vec2.input_spec(self.model.config, self.vocabulary, self.normalise, self.sample_rate)
        # With hf_compat the model sees the padding, so batches must not be padded further than needed.
        return replace(spec, coarse_lengths=not self.options.hf_compat)

    # ---- training -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, F, V); the input is masked if the batch has masks."""
        return wav2vec2.ctc_logits(
            self.model,
            batch.input_values().to(self.model.dtype),
            batch.num_samples_B,
            batch.time_mask_BF,
            batch.channel_mask_BC,
            dropped_layers=self._dropped_layers(),
            hf_compat=self.options.hf_compat,
            is_frozen=self._encoder_is_frozen,
            speed=self.speed,
            graphs=self.graphs if self.training else None,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this micro-batch's share of the loss of its global step.

        That loss is the sum of the utterances' CTC losses divided by their number (fairseq's sentence average) or by
        the number of their labels. Both numbers are known from the plan, so every micro-batch on every rank
        contributes its exact share.
        """
        share = self._ctc(self(batch), batch).sum() / self._divisor(batch)
        if batch.is_filler:
            share = 0.0 * share
        self._log_training(share.detach(), batch)
        if self._encoder_is_frozen and self.trainer.world_size > 1:
            # DDP waits for gradients of every parameter that was trainable when it was built.
            share = with_zero_gradients(share, self.model.wav2vec2)
        # Undo Lightning's division by the number of micro-batches and DDP's average over the ranks.
        return share * batch.num_micro_batches * self.trainer.world_size

    def on_after_backward(self) -> None:
        if self._encoder_is_frozen:
            # None instead of zero: AdamW would otherwise decay the weights and count steps for them.
            self.model.wav2vec2.zero_grad(set_to_none=True)

    def on_fit_start(self) -> None:
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, requires_grad in sizes if requires_grad)
        parts = ": LoRA and the CTC head" if self.options.lora is not None else ""
        log.info("Model: %.1f M parameters, %.1f M of them trained%s.", total / 1e6, trained / 1e6, parts)
        if self.options.freeze_updates:
            log.info("The first %d updates train only the CTC head.", self.options.freeze_updates)

    def train_all_layers(self) -> None:
        """Train the encoder from the first update on, without layer drop; for a copy that measures memory or time."""
        self.options = replace(self.options, freeze_updates=0)
        super().train_all_layers()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self._adamw(self.options.schedule(num_updates_of(self.trainer)), self.options.layer_lr_decay)

    def check_head(self) -> None:
        """Check that the model can be scored as it was loaded, without a checkpoint from training.

        Raises:
            InputError: the weights of its CTC head are random.
        """
        pretrained = self.options.pretrained
        remedy = "name a fine-tuned model, or a checkpoint with --ckpt_path"
        if pretrained is None:
            raise InputError(
                f"model.pretrained is null: the weights are random, so the output would be random text; {remedy}."
            )
        wav2vec2.check_head("model.pretrained", pretrained, remedy, self.vocabulary, self.options.target_lang)

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
        """Log `val_wer` over all splits and, for example, `val_wer/dev-clean` of each split.

        With a single split both are the same: loggers get only the first, callbacks may monitor either.
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
        """Return the ErrorCounts of each split (S, 4), and the sum of losses and number of utterances (2,).

        They are summed over the ranks in one collective operation, in float64, which represents counts exactly.
        """
        sums = torch.cat([*(split_counts.sums for split_counts in self.counts), self._eval_loss])
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        return sums[:-2].view(-1, 4), sums[-2:]

    # ---- the pieces ---------------------------------------------------------------------------------------------

    @property
    def _encoder_is_frozen(self) -> bool:
        return self.training and self.global_step < self.options.freeze_updates

    def _divisor(self, batch: Batch) -> int:
        return batch.num_labels_in_step if self.options.loss_average == "label" else batch.num_utterances_in_step

    def _ctc(self, logits_BFV: Tensor, batch: Batch) -> Tensor:
        return ctc_loss(
            logits_BFV, batch.num_frames_B, batch.labels_BU, batch.num_labels_B, self.vocabulary.blank_id, self.speed
        )

    def _log_training(self, share: Tensor, batch: Batch) -> None:
        """Log the loss of the whole global step, over all micro-batches and ranks, per utterance and per character."""
        num_labels = 0 if batch.is_filler else int(batch.num_labels_B.sum())  # on the CPU: no wait for the device
        self._step_sums += torch.stack([share * self._divisor(batch), share.new_full((), num_labels)])
        if not batch.is_last_of_step:
            return
        if (self.trainer.global_step + 1) % self._log_every_n_steps == 0:
            loss, characters = self.trainer.strategy.reduce(self._step_sums, reduce_op="sum")
            self.log("train_loss", loss / batch.num_utterances_in_step)
            self.log("train_loss_per_char", loss / characters)
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        self._step_sums.zero_()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that `AutoModelForCTC` and `AutoProcessor` load."""
        model, lang = merged(self.model), self.options.target_lang
        wav2vec2.save_pretrained(Path(folder), model, self.vocabulary, self.normalise, self.sample_rate, lang)
