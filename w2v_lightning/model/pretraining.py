"""Wav2Vec2ForPreTraining: building, loading, running with given masks and negatives, losses, saving.

The losses are those of wav2vec 2.0 (arXiv 2006.11477, section 3.2), as in transformers' Wav2Vec2ForPreTraining, but
computed only for the masked frames: transformers quantises every frame of the padded batch and copies a vector for each
negative, which needs many times the memory.

Shapes: B utterances, T samples, F frames, C channels, M masked frames of the batch, K negatives of each, S = 1 + K
candidates, G codebooks of V codes, D dimensions of the compared
vectors.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from w2v_lightning.data.batch import SAMPLE_RATE, Batch
from w2v_lightning.errors import InputError
from w2v_lightning.model import settings, stored
from w2v_lightning.model.encoder import contextualise, projected
from w2v_lightning.model.features import conv_features
from w2v_lightning.model.loading import loading_errors_named
from w2v_lightning.model.saving import complete_or_absent, feature_extractor
from w2v_lightning.model.speed import Speed, to_device
from w2v_lightning.model.stored import WaveformFormat


def from_scratch(config: Mapping[str, Any]) -> Wav2Vec2ForPreTraining:
    """Return a model with random weights; `config` holds changes to transformers' Wav2Vec2Config."""
    settings.check_changes(config)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**config))
    _check_masks(model.config)
    return model


def from_pretrained(name_or_folder: str, config: Mapping[str, Any]) -> tuple[Wav2Vec2ForPreTraining, WaveformFormat]:
    """Load a pre-trained model from the Hugging Face Hub or a local folder; return it and its input.

    Raises:
        InputError: the model does not exist, is not a wav2vec2 model, or lacks the codebooks of pre-training.
    """
    settings.check_changes(config)
    own = stored.model_config(name_or_folder)
    with loading_errors_named(name_or_folder):
        loaded: Any = Wav2Vec2ForPreTraining.from_pretrained(  # returns a pair because of output_loading_info
            name_or_folder,
            config=Wav2Vec2Config.from_dict({**own.to_dict(), **config}),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, loading = loaded
    settings.check_shapes(name_or_folder, own, config, loading["mismatched_keys"])
    if missing := sorted(loading["missing_keys"]):
        raise InputError(
            f"model.pretrained: {name_or_folder} lacks {len(missing)} weights of a model in pre-training, such as"
            f" {missing[0]}; set it to null to start from random weights."
        )
    _check_masks(model.config)
    return model, stored.waveform_format(name_or_folder)


def _check_masks(config: Wav2Vec2Config) -> None:
    if not config.apply_spec_augment:
        raise InputError(
            "model.config: apply_spec_augment is false, but pre-training learns from masked frames; set"
            " model.config.apply_spec_augment=true."
        )


def gumbel_temperature(update: int, start: float, end: float, decay: float) -> float:
    """Return the temperature of the Gumbel softmax at an optimiser update: start x decay^update, at least `end`."""
    return max(start * decay**update, end)


@dataclass(frozen=True)
class Outcome:
    """Sums over a batch's masked frames: how well they were distinguished from their negatives. On the device."""

    contrastive_loss: Tensor  # nats
    diversity_loss: Tensor  # per frame: 0 if all codes are used equally, nearly 1 if only one code is used
    feature_penalty: Tensor  # mean square of the utterance's convolutional features, added once per masked frame
    num_correct: Tensor  # number of frames whose own code scores higher than the codes of all negatives
    num_masked: Tensor
    code_counts_GV: Tensor

    @property
    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.contrastive_loss, self.diversity_loss, self.feature_penalty

    def sums(self) -> Tensor:
        """Return everything in one vector, to sum over micro-batches and ranks: five numbers, then G x V counts."""
        numbers = torch.stack([number.float() for number in (*self.losses, self.num_correct, self.num_masked)])
        return torch.cat([numbers, self.code_counts_GV.flatten()]).detach()


def run(
    model: Wav2Vec2ForPreTraining,
    batch: Batch,
    *,
    feature_grad_mult: float = 1.0,
    dropped_layers: Collection[int] = (),
    speed: Speed = Speed(),
) -> Outcome:
    """Mask the batch with its masks, and compare each masked frame's code with those of its negatives.

    Args:
        model: transformers' model; in training mode codes are drawn with Gumbel noise at `model.quantizer.temperature`.
        batch: batch with `time_mask_BF`, `masked_M` and `negatives_MK`.
        feature_grad_mult: factor on the gradient of the convolutions.
        dropped_layers: transformer layers that are skipped in this pass.
        speed: choice of the implementation.
    """
    core = model.wav2vec2
    assert batch.time_mask_BF is not None  # the data module draws all three, because InputSpec asks for negatives
    assert batch.masked_M is not None
    assert batch.negatives_MK is not None
    waveforms_BT = batch.input_values()
    conv_BFC = scale_gradient(conv_features(core, waveforms_BT, batch.num_samples_B, speed), feature_grad_mult)
    hidden_BFC, features_BFC = projected(core, conv_BFC, batch.time_mask_BF, batch.channel_mask_BC, speed)
    hidden_BFC = contextualise(core, hidden_BFC, batch.num_frames_B, dropped_layers, speed)
    predicted_MD = model.project_hid(hidden_BFC.flatten(0, 1).index_select(0, batch.masked_M))
    features_MC = model.dropout_features(features_BFC.flatten(0, 1).index_select(0, batch.masked_M))
    penalty = feature_penalty(
        conv_BFC, to_device(batch.num_frames_B, waveforms_BT.device), batch.time_mask_BF.sum(dim=1)
    )
    return score(model, predicted_MD, features_MC, batch.negatives_MK.long(), penalty)


def score(
    model: Wav2Vec2ForPreTraining, predicted_MD: Tensor, features_MC: Tensor, negatives_MK: Tensor, penalty: Tensor
) -> Outcome:
    """Quantise the true features of the masked frames and compare them with the transformer's predictions."""
    vectors_MD, choice_MGV, probs_MGV = quantise(model.quantizer, features_MC)
    codes_MG = choice_MGV.detach().argmax(dim=-1)
    same_code_MK = (codes_MG[negatives_MK] == codes_MG[:, None]).all(dim=-1)
    cosine_MS = candidate_cosine(predicted_MD, model.project_q(vectors_MD), negatives_MK)
    # A negative with the same code as the positive is excluded: it would pull in the opposite direction.
    is_excluded_MS = functional.pad(same_code_MK, (1, 0))
    logits_MS = (cosine_MS / model.config.contrastive_logits_temperature).masked_fill(is_excluded_MS, -torch.inf)
    # A frame all of whose negatives are excluded is not correct: with a single code in use, accuracy is 0 and not 1.
    is_correct_M = (logits_MS.argmax(dim=1) == 0) & ~same_code_MK.all(dim=1)
    num_masked = len(features_MC)
    return Outcome(
        contrastive_loss=(logits_MS.logsumexp(dim=1) - logits_MS[:, 0]).sum(),
        diversity_loss=num_masked * unused_share(probs_MGV),
        feature_penalty=penalty,
        num_correct=is_correct_M.sum(),
        num_masked=penalty.new_tensor(num_masked),
        code_counts_GV=choice_MGV.detach().sum(dim=0),
    )


def quantise(quantizer: Wav2Vec2GumbelVectorQuantizer, features_MC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return code vectors (M, D), the choice of codes (M, G, V) as zeros and ones, and probabilities (M, G, V).

    In training the choice is drawn with Gumbel noise from torch's generator and passes the gradient straight through.
    Otherwise it is the most probable code, and the probabilities are the choice itself, as in transformers.
    """
    logits_MGV = quantizer.weight_proj(features_MC).float().unflatten(1, (quantizer.num_groups, quantizer.num_vars))
    if quantizer.training:
        choice_MGV = functional.gumbel_softmax(logits_MGV, tau=quantizer.temperature, hard=True)
        probs_MGV = logits_MGV.softmax(dim=-1)
    else:
        choice_MGV = functional.one_hot(logits_MGV.argmax(dim=-1), quantizer.num_vars).to(logits_MGV)
        probs_MGV = choice_MGV
    codebooks_GVD = quantizer.codevectors.view(quantizer.num_groups, quantizer.num_vars, -1)
    return torch.einsum("mgv,gvd->mgd", choice_MGV, codebooks_GVD).flatten(1), choice_MGV, probs_MGV


def candidate_cosine(predicted_MD: Tensor, targets_MD: Tensor, negatives_MK: Tensor) -> Tensor:
    """Return the cosine (M, S) of each prediction with its own target (first) and its negatives' targets; float32."""
    own_M = torch.arange(len(predicted_MD), device=negatives_MK.device)
    candidates_MS = torch.cat([own_M[:, None], negatives_MK], dim=1)
    with torch.autocast(predicted_MD.device.type, enabled=False):
        # All M x M pairs are fewer numbers than K target vectors for each frame, up to M = K x D = 25,600.
        predicted_MD, targets_MD = (functional.normalize(x_MD.float(), dim=1) for x_MD in (predicted_MD, targets_MD))
        cosine_MM = predicted_MD @ targets_MD.T
    return cosine_MM.gather(1, candidates_MS)


def perplexity(probs_GV: Tensor) -> Tensor:
    """Return the effective number of codes in use per codebook (G,): V if all are used equally, 1 if only one is."""
    return (-torch.xlogy(probs_GV, probs_GV).sum(dim=-1)).exp()


def unused_share(probs_MGV: Tensor) -> Tensor:
    """Return the diversity loss per frame: (G V - sum of perplexities) / G V, over all frames of the micro-batch."""
    mean_GV = probs_MGV.sum(dim=0) / max(1, len(probs_MGV))
    return 1 - perplexity(mean_GV).sum() / mean_GV.numel()


def feature_penalty(conv_BFC: Tensor, num_frames_B: Tensor, num_masked_B: Tensor) -> Tensor:
    """Return the mean square of each utterance's features over its real frames, times its masked frames, summed.

    fairseq's `features_pen` is a mean over all frames of a batch of equal lengths. For such a batch this is the same,
    and in general it does not depend on how utterances are batched.
    """
    is_padding_BF = torch.arange(conv_BFC.shape[1], device=conv_BFC.device) >= num_frames_B[:, None]
    square_BF = conv_BFC.float().square().mean(dim=2).masked_fill(is_padding_BF, 0.0)
    return (square_BF.sum(dim=1) / num_frames_B * num_masked_B).sum()


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """Return `values` unchanged; backward multiplies their gradient by `factor`."""
    if values.requires_grad and factor != 1.0:
        values.register_hook(lambda gradient: gradient * factor)
    return values


def save_pretrained(
    folder: Path, model: Wav2Vec2ForPreTraining, normalise: bool, sample_rate: int = SAMPLE_RATE
) -> None:
    """Write a Hugging Face folder that Wav2Vec2ForPreTraining loads; the folder appears complete or not at all."""
    with complete_or_absent(folder) as temporary:
        model.save_pretrained(temporary)
        feature_extractor(normalise, sample_rate).save_pretrained(temporary)
