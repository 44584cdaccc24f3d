"""Do both sides compute the same? Loss and gradient of one micro-batch from the same weights, under the same masks.

Nothing random is left: dropout and layer drop are off, masks are given. Nothing is padded either, because stock base
models let an utterance see its padding and ours do not. The stock forward takes no channel masks, so a hook on the
encoder's input puts them in.

Gradients differ by up to 1e-3 in float32 too: on noise the CTC loss is in the thousands of nats, and its backward pass
exponentiates differences of numbers of that size.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2v_lightning.bench.stepper import Machine, Stepper, our_stepper
from w2v_lightning.bench.stock import attention_mask, stock_model
from w2v_lightning.bench.workload import without_padding
from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC

NOTHING_RANDOM = dict.fromkeys(
    ("layerdrop", "activation_dropout", "attention_dropout", "hidden_dropout", "feat_proj_dropout", "final_dropout"),
    0.0,
)
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2, "16-mixed": 5e-3}  # of the loss; on a GPU, float32 may mean TF32
SCALE = 64.0  # of the loss in 16-mixed: nothing overflows, as at 65,536 it may in a first step


@dataclass(frozen=True)
class Agreement:
    """Losses are per utterance, in nats; differences are relative."""

    precision: str
    ours: float
    stock: float
    stock_float32: float  # what both are held against, in mixed precision
    loss_difference: float  # ours to stock
    gradient_difference: float  # of all trained parameters as one vector, ours to stock in float32
    stock_gradient_difference: float  # stock to stock in float32: what the precision alone costs
    tolerance: float  # of loss_difference

    @property
    def holds(self) -> bool:
        return self.loss_difference <= self.tolerance

    def as_dict(self) -> dict[str, str | float | bool]:
        return asdict(self) | {"holds": self.holds}


def agreement(build: Callable[..., Wav2Vec2CTC], batch: Batch, machine: Machine) -> Agreement:
    """Ours, `build` with the options given, against stock on `batch`, which is cut to be free of padding."""
    batch = without_padding(batch)
    module = build(**NOTHING_RANDOM)
    full = Machine(machine.device, "32-true")
    reference_loss, reference = _loss_and_gradient(_stock(module, full), batch)
    stock_loss, stock = _loss_and_gradient(_stock(module, machine), batch)
    our_loss, ours = _loss_and_gradient(our_stepper(module, machine), batch)
    return Agreement(
        precision=machine.precision,
        ours=our_loss,
        stock=stock_loss,
        stock_float32=reference_loss,
        loss_difference=abs(our_loss - stock_loss) / abs(stock_loss),
        gradient_difference=float((ours - reference).norm() / reference.norm()),
        stock_gradient_difference=float((stock - reference).norm() / reference.norm()),
        tolerance=TOLERANCE[machine.precision],
    )


def _stock(module: Wav2Vec2CTC, machine: Machine) -> Stepper:
    model = stock_model(module, mask_feature_prob=0.0).to(machine.device)

    def share(batch: Batch) -> Tensor:
        hook = model.wav2vec2.encoder.register_forward_pre_hook(_channel_masking(batch.channel_mask_BC))
        mask = attention_mask(model.config, batch)
        output = model.wav2vec2(batch.input_values(), attention_mask=mask, mask_time_indices=batch.time_mask_BF)
        hook.remove()
        logits_BFV = model.lm_head(model.dropout(output.last_hidden_state))
        with torch.backends.cudnn.flags(enabled=False):
            loss = functional.ctc_loss(
                logits_BFV.float().log_softmax(-1).transpose(0, 1),
                batch.labels_BU,
                batch.num_frames_B,
                batch.num_labels_B,
                blank=model.config.pad_token_id,
                reduction="sum",
                zero_infinity=True,
            )
        return loss / batch.num_utterances_in_step

    return Stepper(model, share, torch.optim.SGD(model.lm_head.parameters(), lr=0.0), None, machine)


def _channel_masking(channel_mask_BC: Tensor | None) -> Callable[[nn.Module, tuple], tuple | None]:
    def mask(_: nn.Module, inputs: tuple) -> tuple | None:
        if channel_mask_BC is None:
            return None
        hidden_BFC, *others = inputs
        return hidden_BFC.masked_fill(channel_mask_BC[:, None], 0.0), *others

    return mask


def _loss_and_gradient(stepper: Stepper, batch: Batch) -> tuple[float, Tensor]:
    stepper.scaler = stepper.machine.scaler(init_scale=SCALE)
    loss = stepper.backward(batch)
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad / stepper.scaler.get_scale() for p in stepper.parameters
    ]
    return float(loss), torch.cat([gradient.flatten().float() for gradient in gradients])
