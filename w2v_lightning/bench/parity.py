"""Comparison of both sides: loss and gradient of one micro-batch with the same weights and masks.

Nothing is random: dropout and layer drop are off, masks are given. Batches have no padding, because stock base models
attend to it and ours do not. The stock forward has no argument for channel masks, so a hook on the encoder's input
applies them.

Gradients differ by up to 1e-3 even in float32: on noise the CTC loss is in the thousands of nats, and its backward pass
exponentiates differences of numbers of that size.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from w2v_lightning.bench.stepper import Machine, Stepper, our_stepper
from w2v_lightning.bench.stock import attention_mask, on_device, stock_model
from w2v_lightning.bench.workload import without_padding
from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC

NOTHING_RANDOM = dict.fromkeys(
    ("layerdrop", "activation_dropout", "attention_dropout", "hidden_dropout", "feat_proj_dropout", "final_dropout"),
    0.0,
)
# Largest relative difference of the losses. On a GPU, float32 may mean TF32.
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2, "16-mixed": 5e-3}
SCALE = 64.0  # loss scale in 16-mixed: small enough not to overflow; the usual 65,536 may, in a first step


@dataclass(frozen=True)
class Agreement:
    """Losses (nats per utterance) and relative differences of both sides."""

    precision: str
    ours: float
    stock: float
    stock_float32: float  # reference for both sides, in mixed precision
    loss_difference: float  # ours to stock
    gradient_difference: float  # ours to stock in float32, over all trained parameters as one vector
    stock_gradient_difference: float  # stock to stock in float32: the effect of the precision alone
    tolerance: float  # largest accepted loss_difference

    @property
    def holds(self) -> bool:
        return self.loss_difference <= self.tolerance

    def as_dict(self) -> dict[str, str | float | bool]:
        return asdict(self) | {"holds": self.holds}


def agreement(build: Callable[..., Wav2Vec2CTC], batch: Batch, machine: Machine) -> Agreement:
    """Compare ours with stock on a batch.

    Args:
        build: function that returns our module, given model options.
        batch: utterances, which are shortened to the length of the shortest to avoid padding.
        machine: device to compute on, and precision.
    """
    batch = without_padding(batch)
    module = build(**NOTHING_RANDOM)
    float32 = Machine(machine.device, "32-true")
    reference_loss, reference = _loss_and_gradient(_stock(module, float32), batch)
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
    model = on_device(stock_model(module, mask_feature_prob=0.0), machine.device)
    blank = model.config.pad_token_id
    assert blank is not None

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
                blank=blank,
                reduction="sum",
                zero_infinity=True,
            )
        return loss / batch.num_utterances_in_step

    return Stepper(model, share, torch.optim.SGD(model.lm_head.parameters(), lr=0.0), None, machine)


def _channel_masking(channel_mask_BC: Tensor | None) -> Callable[[nn.Module, tuple], tuple | None]:
    def mask(_: nn.Module, inputs: tuple) -> tuple | None:
        if channel_mask_BC is None:
            return None
        hidden_BFC, *rest = inputs
        return hidden_BFC.masked_fill(channel_mask_BC[:, None], 0.0), *rest

    return mask


def _loss_and_gradient(stepper: Stepper, batch: Batch) -> tuple[float, Tensor]:
    stepper.scaler = stepper.machine.scaler(init_scale=SCALE)
    loss = stepper.backward(batch)
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad / stepper.scaler.get_scale() for p in stepper.parameters
    ]
    return float(loss), torch.cat([gradient.flatten().float() for gradient in gradients])
