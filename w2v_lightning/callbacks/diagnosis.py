"""Diagnosis of stuck training: one warning for each problem, with its meaning and remedy.

Shapes: B utterances, F frames, V tokens, U labels.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError, listed
from w2v_lightning.model.sharding import is_finite, total_norm
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# CTC predicts only blanks at first. From a pre-trained model that ends after 300 (model cards on the Hugging Face Hub)
# to 2,000 updates at the full learning rate; from random weights it takes several times as long.
PLATEAU_PRETRAINED = 2000
PLATEAU_FROM_SCRATCH = 5000
BLANK_CHECKS = 3  # in a row: a single short, masked utterance may well be all blank
NORM_HISTORY = 50  # number of gradient norms, one per check
NORM_HISTORY_LEAST = 10  # norms that are needed to tell an explosion
EXPLODED = 100.0  # times the median
COLLAPSED = 1e-6  # times the median
SMALLEST_LOSS_SCALE = 1.0  # GradScaler starts at 65,536 and halves it with every step that it skips
NEVER = 2**62

MESSAGES = {
    "frozen": "No parameter is trained: all of them are frozen. Unfreeze some (requires_grad).",
    "targets": "The targets of a batch have no letters, they are empty or all <unk>: nothing can be learnt from them."
    " Usually the transcripts have another letter case or alphabet than the vocabulary. Check the texts of"
    " {ids}, or use model.vocabulary=build.",
    "infeasible": "{number} of {size} utterances of a batch have more labels than frames, so CTC cannot align them and"
    " they do not contribute: {ids}. Is the audio truncated, or do the transcripts belong to other audio? Run `python"
    " -m w2v_lightning check`.",
    "lr": "The learning rate is still zero at update {update}: nothing is learnt. Set model.learning_rate, and check"
    " that the schedule leaves zero after the first update.",
    "collapsed": "The gradient has vanished at update {update} (norm {norm:.2g}): nothing is learnt any more. Either"
    " no utterance contributes (transcripts longer than their audio), or training has diverged: then lower"
    " model.learning_rate and restart from an earlier checkpoint.",
    "exploded": "The gradient has exploded: norm {norm:.2g} at update {update}, its median is {usual:.2g}. Training"
    " is about to diverge: lower model.learning_rate, lengthen model.warmup, or set trainer.gradient_clip_val=1.0.",
    "loss": "The loss is not finite (NaN or infinite) since update {update}, with these utterances in the batch:"
    " {ids}. If their audio is damaged, exclude them. Otherwise training has diverged: lower"
    " model.learning_rate or set trainer.gradient_clip_val=1.0, and restart from an earlier checkpoint.",
    "scale": "The loss scale of 16-mixed has fallen to {scale:.2g}: most steps overflow in half precision and are"
    " skipped. Use trainer.precision=bf16-mixed (GPUs from A100 on) or 32-true, or lower model.learning_rate.",
    "blanks": "Only blanks are predicted at update {update}. Starting from {start}, with this schedule, that is normal"
    " until about update {due}, not for longer. Is the run long enough (trainer.max_steps: a few thousand updates)? Is"
    " model.learning_rate too low, or so high that training diverged? Do the transcripts belong to their audio (`python"
    " -m w2v_lightning check`)?",
}

# Continuing would waste hours, and overwrite the earlier checkpoints: only the newest few are kept.
DIVERGED = (
    "Training is stopped: since update {update} weights are NaN or infinite, and stay so. Remove the cause, then resume"
    " from a checkpoint of an earlier update with resume=PATH, or start over with resume=never. By default the command"
    " would resume from the newest checkpoint, which may hold such weights."
)


class Diagnosis(Callback):
    """Callback that warns of problems in training, and ends a run whose weights have become NaN or infinite.

    The problems are: only blanks are predicted, the targets have no letters, the loss is not finite (with the ids of
    the utterances), the gradient vanishes or explodes, the learning rate stays zero, transcripts are too long for their
    audio, a GradScaler skips its steps, no parameter is trained.

    It checks the first update, those that are logged (log_every_n_steps) and the last one; only there it waits for the
    device. There is no second forward pass: a hook on the CTC head sees the logits.

    Raises:
        InputError: during training, weights have become NaN or infinite.
    """

    def __init__(self) -> None:
        self._warned_of: set[str] = set()
        self._vocabulary: Vocabulary | None = None  # None: not a CTC model
        self._hook: RemovableHandle | None = None
        self._checked: Batch | None = None  # the current micro-batch if it is checked
        self._has_letters: Tensor | None = None  # whether the last checked predictions have any letter
        self._num_blank_checks = 0  # successive checks with only blanks
        self._highest_lr = 0.0
        self._norms: deque[float] = deque(maxlen=NORM_HISTORY)
        self._exploded_before = False
        self._window: list[tuple[int, list[str]]] = []  # (update, ids) of each micro-batch since the last check
        # Index in `_window` of the first micro-batch whose loss is not finite, on the device.
        self._first_bad = torch.tensor(NEVER)

    # ---- when to check ------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check for trainable parameters, before torch refuses to build an optimiser without them."""
        if stage == "fit" and not any(parameter.requires_grad for parameter in pl_module.parameters()):
            self._warn_once("frozen")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_updates = trainer.estimated_stepping_batches
        self._first_bad = torch.tensor(NEVER, device=pl_module.device)
        self._window.clear()
        if head := getattr(pl_module.model, "lm_head", None):
            self._vocabulary = cast("Vocabulary", pl_module.vocabulary)
            self._hook = head.register_forward_hook(self._note_logits)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        is_checked = batch.is_last_of_step and self._is_check_due(trainer)
        self._checked = batch if is_checked else None
        if is_checked and self._vocabulary and not batch.is_filler:
            self._check_targets(batch, self._vocabulary)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._checked is None:
            return
        # Collective if the parameters are sharded.
        norm = total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
        if trainer.is_global_zero:
            self._check_learning_rate(trainer.global_step + 1, optimizer)
            self._check_gradient(trainer.global_step + 1, float(norm))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(outputs, Mapping)  # Lightning's automatic optimisation returns {"loss": ...}
        self._note_loss(trainer.global_step + (not batch.is_last_of_step), outputs["loss"], batch)
        if self._checked is None:
            return
        self._checked = None
        self._check_losses(trainer, pl_module)
        if trainer.is_global_zero:
            self._check_loss_scale(trainer)
            self._check_predictions(trainer.global_step, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook:
            self._hook.remove()
            self._hook = None

    def _is_check_due(self, trainer: Trainer) -> bool:
        update = trainer.global_step + 1  # counted from 1
        log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by Lightning's logger connector
        return update == 1 or update % log_every == 0 or update >= self._num_updates

    def _warn_once(self, problem: str, **values: object) -> None:
        if problem not in self._warned_of:
            self._warned_of.add(problem)
            log.warning(MESSAGES[problem].format(**values))

    # ---- what to check ------------------------------------------------------------------------------------------

    def _check_targets(self, batch: Batch, vocabulary: Vocabulary) -> None:
        if not has_letters(batch, vocabulary):
            self._warn_once("targets", ids=listed(batch.ids))
        ids = infeasible_ids(batch)
        if ids and 2 * len(ids) >= len(batch):
            self._warn_once("infeasible", number=len(ids), size=len(batch), ids=listed(ids))

    def _check_learning_rate(self, update: int, optimizer: Optimizer) -> None:
        self._highest_lr = max(self._highest_lr, *(group["lr"] for group in optimizer.param_groups))
        if update > 1 and self._highest_lr == 0:  # a warm-up may start at zero, but must not stay there
            self._warn_once("lr", update=update)

    def _check_gradient(self, update: int, norm: float) -> None:
        if not math.isfinite(norm):
            return  # the checks of loss and loss scale explain why
        usual = median(self._norms) if self._norms else 0.0
        if norm <= COLLAPSED * usual:
            self._warn_once("collapsed", update=update, norm=norm)
        exploded = len(self._norms) >= NORM_HISTORY_LEAST and norm > EXPLODED * usual
        if exploded and self._exploded_before:
            self._warn_once("exploded", update=update, norm=norm, usual=usual)
        self._exploded_before = exploded
        self._norms.append(norm)

    def _note_loss(self, update: int, loss: Tensor, batch: Batch) -> None:
        """Note where the loss is not finite, without waiting for the device."""
        index = torch.where(loss.isfinite(), NEVER, len(self._window))
        self._first_bad = torch.minimum(self._first_bad, index)
        self._window.append((update, batch.ids))

    def _check_losses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first_of_rank = int(self._first_bad)
        # The next step spreads NaN to all ranks: only the rank where it started can name the utterances.
        first = int(cast("Tensor", trainer.strategy.reduce(self._first_bad, reduce_op="min")))
        if first_of_rank == first != NEVER:
            update, ids = self._window[first]
            self._warn_once("loss", update=update, ids=listed(ids))
        if first != NEVER:
            self._warned_of.add("loss")  # on all ranks
            if not is_finite(pl_module):  # they stay finite if a GradScaler skipped the update
                raise InputError(DIVERGED.format(update=self._window[first][0]))
        self._first_bad.fill_(NEVER)
        self._window.clear()

    def _check_loss_scale(self, trainer: Trainer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            self._warn_once("scale", scale=scaler.get_scale())

    def _note_logits(self, head: torch.nn.Module, args: tuple[Any, ...], logits_BFV: Tensor) -> None:
        if self._checked is None or not head.training:
            return
        assert self._vocabulary is not None  # set with the hook
        num_frames_B = self._checked.num_frames_B.to(logits_BFV.device, non_blocking=True)
        is_real_BF = torch.arange(logits_BFV.shape[1], device=logits_BFV.device) < num_frames_B[:, None]
        self._has_letters = (is_real_BF & (logits_BFV.argmax(dim=-1) != self._vocabulary.blank_id)).any()

    def _check_predictions(self, update: int, pl_module: LightningModule) -> None:
        if self._has_letters is None or "loss" in self._warned_of:  # argmax over NaN gives the first token: the blank
            return
        self._num_blank_checks = 0 if self._has_letters else self._num_blank_checks + 1
        from_scratch = getattr(pl_module.hparams, "pretrained", None) is None
        warmup, freeze_updates = (getattr(pl_module.hparams, name, 0) for name in ("warmup", "freeze_updates"))
        due = plateau_updates(self._num_updates, warmup, freeze_updates, from_scratch)
        if self._num_blank_checks >= BLANK_CHECKS and update >= due:
            start = "random weights" if from_scratch else "a pre-trained model"
            self._warn_once("blanks", update=update, start=start, due=due)


def plateau_updates(num_updates: float, warmup: float, freeze_updates: int, from_scratch: bool) -> int:
    """Number of updates in which predicting only blanks is normal, at most the whole run.

    That is the warm-up, or the usual plateau counted from the update at which the transformer starts to be trained.

    Args:
        num_updates: number of updates of the run.
        warmup: share of the updates in which the learning rate rises.
        freeze_updates: number of updates in which only the CTC head is trained.
        from_scratch: training starts from random weights.
    """
    usual = PLATEAU_FROM_SCRATCH if from_scratch else PLATEAU_PRETRAINED
    warmup_updates = warmup * num_updates if math.isfinite(num_updates) else 0
    return int(min(max(freeze_updates + usual, warmup_updates), num_updates))


def has_letters(batch: Batch, vocabulary: Vocabulary) -> bool:
    """Check if any label of the batch is other than a space or <unk>. Waits for the device."""
    no_letters = [
        i for i, token in enumerate(vocabulary.tokens) if token in (vocabulary.unknown, vocabulary.word_delimiter)
    ]
    labels_BU = batch.labels_BU.cpu()
    is_real_BU = torch.arange(labels_BU.shape[1]) < batch.num_labels_B[:, None]
    return bool((is_real_BU & ~torch.isin(labels_BU, torch.tensor(no_letters))).any())


def infeasible_ids(batch: Batch) -> list[str]:
    """Return the ids of utterances that CTC cannot align. Waits for the device.

    CTC needs one frame for each label, and one more between equal neighbours.
    """
    labels_BU = batch.labels_BU.cpu()
    is_pair_BU = torch.arange(labels_BU.shape[1])[1:] < batch.num_labels_B[:, None]
    num_repeats_B = (is_pair_BU & (labels_BU[:, 1:] == labels_BU[:, :-1])).sum(dim=1)
    is_infeasible_B = batch.num_frames_B < batch.num_labels_B + num_repeats_B
    return [utterance_id for utterance_id, bad in zip(batch.ids, is_infeasible_B.tolist(), strict=True) if bad]


def _parameters(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
