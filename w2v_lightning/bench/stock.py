"""Stock Wav2Vec2ForCTC of transformers at its best: sdpa attention, autocast, fused AdamW, our batches and clipping.

It is timed as a user would call it: the stock forward draws its own masks, on the CPU, with our probabilities, and
drops layers by its own draw. Models with layer norm in the feature encoder get an attention mask, as from transformers'
feature extractor; the base models get none, so they attend to padding.
"""

import copy

import torch
from torch import Tensor
from transformers import AutoModelForCTC, Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.bench.stepper import Machine, Stepper
from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.optim import INITIAL_LR_SCALE

NO_LABEL = -100  # transformers' padding of labels


def stock_model(module: Wav2Vec2CTC, **changes: object) -> Wav2Vec2ForCTC:
    """Return a new Wav2Vec2ForCTC in training mode with the weights of `module`, and its config with `changes`."""
    config = copy.deepcopy(module.model.config)
    config.update({"ctc_loss_reduction": "sum", "ctc_zero_infinity": True, **changes})
    if config.mask_feature_length > config.hidden_size:
        config.mask_feature_prob = 0.0  # transformers raises an error where ours masks nothing
    # By default, from_config takes the data type of the checkpoint; training keeps the weights in float32.
    model = AutoModelForCTC.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    assert isinstance(model, Wav2Vec2ForCTC)
    model.load_state_dict(module.model.state_dict())
    model.freeze_feature_encoder()  # also avoids gradients with respect to the input
    for parameter, ours in zip(model.parameters(), module.model.parameters(), strict=True):
        parameter.requires_grad_(ours.requires_grad)
    return model.train()


def stock_stepper(module: Wav2Vec2CTC, machine: Machine, *, is_compiled: bool = False) -> Stepper:
    """Return stock training of the weights of `module`.

    Args:
        module: module whose weights and optimiser options are used.
        machine: device to compute on, and precision.
        is_compiled: compilation of the whole model by torch.compile.
    """
    model = on_device(stock_model(module), machine.device)
    options, parameters = module.options, [p for p in model.parameters() if p.requires_grad]
    lr = options.learning_rate * INITIAL_LR_SCALE  # our learning rate at the start of its warm-up
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=options.adam_betas, eps=options.adam_eps, fused=True)
    forward = torch.compile(model) if is_compiled else model

    def share(batch: Batch) -> Tensor:
        output = forward(batch.input_values(), attention_mask=attention_mask(model.config, batch), labels=labels(batch))
        return output.loss / batch.num_utterances_in_step

    return Stepper(model, share, optimizer, None, machine)


def on_device(model: Wav2Vec2ForCTC, device: torch.device) -> Wav2Vec2ForCTC:
    """Move the model to `device`."""
    return model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that `to` is a method


def attention_mask(config: Wav2Vec2Config, batch: Batch) -> Tensor | None:
    """Return the mask that the model's feature extractor would make: int64 (B, T), or None for the base models."""
    if config.feat_extract_norm == "group":
        return None
    waveforms_BT = batch.waveforms_BT
    num_samples_B1 = batch.num_samples_B.to(waveforms_BT.device, non_blocking=True)[:, None]
    return (torch.arange(waveforms_BT.shape[1], device=waveforms_BT.device) < num_samples_B1).long()


def labels(batch: Batch) -> Tensor:
    """Return the labels, int64 (B, U), with transformers' padding."""
    labels_BU = batch.labels_BU
    num_labels_B1 = batch.num_labels_B.to(labels_BU.device, non_blocking=True)[:, None]
    is_label_BU = torch.arange(labels_BU.shape[1], device=labels_BU.device) < num_labels_B1
    return labels_BU.masked_fill(~is_label_BU, NO_LABEL)
