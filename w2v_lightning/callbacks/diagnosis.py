"""Says in plain words, once each, that training is stuck, what that means and what to do.

Shapes: B utterances, F frames, V tokens, U labels.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError, listed
from w2v_lightning.model.sharding import is_finite, total_norm
from w2v_lightning.text.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# CTC predicts only blanks at first. From a pre-trained model that ends after 300 (model cards on the Hugging Face hub)
# to 2,000 updates at the full learning rate; from random weights it takes several times as long.
PLATEAU_PRETRAINED = 2000
PLATEAU_FROM_SCRATCH = 5000
BLANK_LOOKS = 3  # in a row: one short utterance under its masks may well be all blank
NORM_HISTORY = 50  # looks
NORM_HISTORY_LEAST = 10  # before which nothing is said about an explosion
EXPLODED = 100.0  # times the median
COLLAPSED = 1e-6
SMALLEST_LOSS_SCALE = 1.0  # GradScaler starts at 65,536 and halves it with every step that it skips
NEVER = 2**62

MESSAGES = {
    "frozen": "No parameter is trained: all of them are frozen. Unfreeze some (requires_grad).",
    "targets": "The targets of a batch hold no letter, they are empty or all <unk>: nothing can be learnt from them."
    " Most often the transcripts are in another letter case or alphabet than the vocabulary. Look at the texts of"
    " {ids}, or use model.vocabulary=build.",
    "infeasible": "{number} of {size} utterances of a batch have more labels than frames, so CTC cannot align them and"
    " they count nothing: {ids}. Is audio cut short, or are the transcripts those of other audio? See `python -m"
    " w2v_lightning check`.",
    "lr": "The learning rate is still zero at update {update}: nothing is learnt. Set model.learning_rate, and see"
    " that the schedule leaves zero after the first update.",
    "collapsed": "The gradient has vanished at update {update} (norm {norm:.2g}): nothing is learnt any more. Either"
    " no utterance counts (transcripts longer than their audio), or the model has broken: then lower"
    " model.learning_rate and start again from an earlier checkpoint.",
    "exploded": "The gradient has exploded: norm {norm:.2g} at update {update}, its median is {usual:.2g}. The model"
    " is about to break: lower model.learning_rate, lengthen model.warmup, or set trainer.gradient_clip_val=1.0.",
    "loss": "The loss is not finite (NaN or infinite) since update {update}, with these utterances in the batch:"
    " {ids}. If their audio is damaged, leave them out. If it is sound, training has diverged: lower"
    " model.learning_rate or set trainer.gradient_clip_val=1.0, and start again from an earlier checkpoint.",
    "scale": "The loss scale of 16-mixed has fallen to {scale:.2g}: most steps overflow in half precision and are"
    " skipped. Use trainer.precision=bf16-mixed (GPUs from A100 on) or 32-true, or lower model.learning_rate.",
    "blanks": "Only blanks are predicted at update {update}. From {start} and with this schedule that is normal until"
    " about update {due}, not for longer. Is the run long enough (trainer.max_steps: some thousand updates)? Is"
    " model.learning_rate too low, or so high that the model broke? Do the transcripts belong to their audio (`python"
    " -m w2v_lightning check`)?",
}

# Going on would cost hours, and the checkpoints from before, of which only the newest few are kept.
DIVERGED = (
    "Training is stopped: since update {update} weights are NaN or infinite, and stay so. Remove the cause, then go on"
    " from a checkpoint of an earlier update with resume=PATH, or begin anew with resume=never; by itself the command"
    " would go on from the newest one, which may hold such weights."
)


class Diagnosis(Callback):
    """Warns of: nothing but blanks predicted, no letters in the targets, a loss that is not finite (with the ids), a
    gradient that vanishes or explodes, a learning rate of zero, transcripts too long for their audio, a GradScaler
    that skips its steps, nothing to train. An InputError ends a run whose weights have become NaN or infinite.

    It looks at the first update, at those that are logged (log_every_n_steps) and at the last; only there is the device
    waited for. No second forward pass: the logits are seen as they leave the head.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._vocabulary: Vocabulary | None = None  # None: no CTC model
        self._hook: RemovableHandle | None = None
        self._watched: Batch | None = None  # the micro-batch that is looked at while it is in hand
        self._has_letters: Tensor | None = None
        self._blank_looks = 0
        self._highest_lr = 0.0
        self._norms: deque[float] = deque(maxlen=NORM_HISTORY)
        self._exploded_before = False
        self._window: list[tuple[int, list[str]]] = []  # (update, ids) of each micro-batch since the last look
        self._first_bad: Tensor | None = None  # the first of them whose loss is not finite; on the device

    # ---- when to look -------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before the optimiser is built, which torch refuses without parameters, in other words."""
        if stage == "fit" and not any(parameter.requires_grad for parameter in pl_module.parameters()):
            self._say("frozen")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_updates = trainer.estimated_stepping_batches
        self._first_bad = torch.tensor(NEVER, device=pl_module.device)
        self._window.clear()
        if head := getattr(pl_module.model, "lm_head", None):
            self._vocabulary = pl_module.vocabulary
            self._hook = head.register_forward_hook(self._see_logits)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        looks = batch.is_last_of_step and self._is_look(trainer)
        self._watched = batch if looks else None
        if looks and self._vocabulary and not batch.is_filler:
            self._look_at_targets(batch, self._vocabulary)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._watched is None:
            return
        norm = total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])  # may ask all ranks
        if trainer.is_global_zero:
            self._look_at_learning_rate(trainer.global_step + 1, optimizer)
            self._look_at_gradient(trainer.global_step + 1, float(norm))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Mapping[str, Any], batch: Batch, batch_idx: int
    ) -> None:
        self._note_loss(trainer.global_step + (not batch.is_last_of_step), outputs["loss"], batch)
        if self._watched is None:
            return
        self._watched = None
        self._look_at_losses(trainer, pl_module)
        if trainer.is_global_zero:
            self._look_at_loss_scale(trainer)
            self._look_at_predictions(trainer.global_step, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook:
            self._hook.remove()
            self._hook = None

    def _is_look(self, trainer: Trainer) -> bool:
        update = trainer.global_step + 1  # 1, 2, 3 ...
        return update == 1 or update % trainer.log_every_n_steps == 0 or update >= self._num_updates

    def _say(self, what: str, **values: object) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(MESSAGES[what].format(**values))

    # ---- what to look at ----------------------------------------------------------------------------------------

    def _look_at_targets(self, batch: Batch, vocabulary: Vocabulary) -> None:
        if not has_letters(batch, vocabulary):
            self._say("targets", ids=listed(batch.ids))
        ids = infeasible_ids(batch)
        if ids and 2 * len(ids) >= len(batch):
            self._say("infeasible", number=len(ids), size=len(batch), ids=listed(ids))

    def _look_at_learning_rate(self, update: int, optimizer: Optimizer) -> None:
        self._highest_lr = max(self._highest_lr, *(group["lr"] for group in optimizer.param_groups))
        if update > 1 and self._highest_lr == 0:  # a warm-up may start at zero, but not stay there
            self._say("lr", update=update)

    def _look_at_gradient(self, update: int, norm: float) -> None:
        if not math.isfinite(norm):
            return  # the loss or the loss scale tells why
        usual = median(self._norms) if self._norms else 0.0
        if norm <= COLLAPSED * usual:
            self._say("collapsed", update=update, norm=norm)
        exploded = len(self._norms) >= NORM_HISTORY_LEAST and norm > EXPLODED * usual
        if exploded and self._exploded_before:
            self._say("exploded", update=update, norm=norm, usual=usual)
        self._exploded_before = exploded
        self._norms.append(norm)

    def _note_loss(self, update: int, loss: Tensor, batch: Batch) -> None:
        """Without waiting for the device; the ids are kept until the next look."""
        number = torch.where(loss.isfinite(), NEVER, len(self._window))
        self._first_bad = torch.minimum(self._first_bad, number)
        self._window.append((update, batch.ids))

    def _look_at_losses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = int(self._first_bad)
        # The next step spreads it over all ranks: only the one where it began can name the utterances.
        first = int(trainer.strategy.reduce(self._first_bad, reduce_op="min"))
        if own == first != NEVER:
            update, ids = self._window[first]
            self._say("loss", update=update, ids=listed(ids))
        if first != NEVER:
            self._said.add("loss")  # also where it did not begin
            if not is_finite(pl_module):  # a GradScaler skips such an update
                raise InputError(DIVERGED.format(update=self._window[first][0]))
        self._first_bad.fill_(NEVER)
        self._window.clear()

    def _look_at_loss_scale(self, trainer: Trainer) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            self._say("scale", scale=scaler.get_scale())

    def _see_logits(self, head: torch.nn.Module, args: tuple, logits_BFV: Tensor) -> None:
        if self._watched is None or not head.training:
            return
        num_frames_B = self._watched.num_frames_B.to(logits_BFV.device, non_blocking=True)
        is_real_BF = torch.arange(logits_BFV.shape[1], device=logits_BFV.device) < num_frames_B[:, None]
        self._has_letters = (is_real_BF & (logits_BFV.argmax(dim=-1) != self._vocabulary.blank_id)).any()

    def _look_at_predictions(self, update: int, pl_module: LightningModule) -> None:
        if self._has_letters is None or "loss" in self._said:  # among NaN the first is the highest: the blank
            return
        self._blank_looks = 0 if self._has_letters else self._blank_looks + 1
        from_scratch = getattr(pl_module.hparams, "pretrained", None) is None
        schedule = [getattr(pl_module.hparams, name, 0) for name in ("warmup", "freeze_updates")]
        due = plateau_updates(self._num_updates, *schedule, from_scratch)
        if self._blank_looks >= BLANK_LOOKS and update >= due:
            start = "random weights" if from_scratch else "a pre-trained model"
            self._say("blanks", update=update, start=start, due=due)


def plateau_updates(num_updates: float, warmup: float, freeze_updates: int, from_scratch: bool) -> int:
    """Until which update only blanks are normal: as long as warm-up, and the usual plateau after the transformer is set
    free; at most the whole run.

    Args:
        num_updates: of the run.
        warmup: share of them in which the learning rate rises.
        freeze_updates: in which the CTC head is trained alone.
        from_scratch: training began with random weights.
    """
    usual = PLATEAU_FROM_SCRATCH if from_scratch else PLATEAU_PRETRAINED
    warmup_updates = warmup * num_updates if math.isfinite(num_updates) else 0
    return int(min(max(freeze_updates + usual, warmup_updates), num_updates))


def has_letters(batch: Batch, vocabulary: Vocabulary) -> bool:
    """Whether a label of the batch stands for more than a space or <unk>. Waits for the device."""
    no_letters = [
        i for i, token in enumerate(vocabulary.tokens) if token in (vocabulary.unknown, vocabulary.word_delimiter)
    ]
    labels_BU = batch.labels_BU.cpu()
    is_real_BU = torch.arange(labels_BU.shape[1]) < batch.num_labels_B[:, None]
    return bool((is_real_BU & ~torch.isin(labels_BU, torch.tensor(no_letters))).any())


def infeasible_ids(batch: Batch) -> list[str]:
    """The utterances that CTC cannot align: it needs a frame for each label and one more between equal neighbours.

    Waits for the device.
    """
    labels_BU = batch.labels_BU.cpu()
    is_pair_BU = torch.arange(labels_BU.shape[1])[1:] < batch.num_labels_B[:, None]
    num_repeats_B = (is_pair_BU & (labels_BU[:, 1:] == labels_BU[:, :-1])).sum(dim=1)
    is_infeasible_B = batch.num_frames_B < batch.num_labels_B + num_repeats_B
    return [utterance_id for utterance_id, bad in zip(batch.ids, is_infeasible_B.tolist(), strict=True) if bad]


def _parameters(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
