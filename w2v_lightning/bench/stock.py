"""transformers' own Wav2Vec2ForCTC at its best: sdpa attention, autocast, fused AdamW, the same batches and clipping.

The stock forward draws its masks itself, on the CPU, with the same probabilities, and drops layers by its own draw; it
is timed so, as anybody would call it. An attention mask goes with models that transformers' feature extractor gives one
(those with layer norm in the feature encoder); the base models get none, so they attend to padding.
"""

import copy

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.bench.stepper import Machine, Stepper
from w2v_lightning.data.batch import Batch
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.optim import INITIAL_LR_SCALE

NO_LABEL = -100  # transformers' padding of labels


def stock_model(module: Wav2Vec2CTC, **changes: object) -> Wav2Vec2ForCTC:
    """A new Wav2Vec2ForCTC with the weights of `module` and its config, of which `changes` are made, in training."""
    config = copy.deepcopy(module.model.config)
    config.update({"ctc_loss_reduction": "sum", "ctc_zero_infinity": True, **changes})
    if config.mask_feature_length > config.hidden_size:
        config.mask_feature_prob = 0.0  # refused by transformers, where ours masks nothing
    config._attn_implementation = "sdpa"
    model = Wav2Vec2ForCTC(config)
    model.load_state_dict(module.model.state_dict())
    model.freeze_feature_encoder()  # it also asks for no gradients with respect to its input then
    for parameter, ours in zip(model.parameters(), module.model.parameters(), strict=True):
        parameter.requires_grad_(ours.requires_grad)
    return model.train()


def stock_stepper(module: Wav2Vec2CTC, machine: Machine, *, is_compiled: bool = False) -> Stepper:
    """Stock training from the weights of `module`; `is_compiled`: the whole model by torch.compile."""
    model = stock_model(module).to(machine.device)
    options, parameters = module.hparams, [p for p in model.parameters() if p.requires_grad]
    lr = options.learning_rate * INITIAL_LR_SCALE  # where our schedule begins its warm-up
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=tuple(options.adam_betas), eps=options.adam_eps, fused=True)
    forward = torch.compile(model) if is_compiled else model

    def share(batch: Batch) -> Tensor:
        output = forward(batch.input_values(), attention_mask=attention_mask(model.config, batch), labels=labels(batch))
        return output.loss / batch.num_utterances_in_step

    return Stepper(model, share, optimizer, None, machine)


def attention_mask(config: Wav2Vec2Config, batch: Batch) -> Tensor | None:
    """As the feature extractor of such a model makes it: int64 (B, T), or None for the base models."""
    if config.feat_extract_norm == "group":
        return None
    waveforms_BT = batch.waveforms_BT
    num_samples_B1 = batch.num_samples_B.to(waveforms_BT.device, non_blocking=True)[:, None]
    return (torch.arange(waveforms_BT.shape[1], device=waveforms_BT.device) < num_samples_B1).long()


def labels(batch: Batch) -> Tensor:
    """int64 (B, U), padded as transformers wants it."""
    labels_BU = batch.labels_BU
    num_labels_B1 = batch.num_labels_B.to(labels_BU.device, non_blocking=True)[:, None]
    is_label_BU = torch.arange(labels_BU.shape[1], device=labels_BU.device) < num_labels_B1
    return labels_BU.masked_fill(~is_label_BU, NO_LABEL)
