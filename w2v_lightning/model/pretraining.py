"""Wav2Vec2ForPreTraining: built or loaded, run on masks and negatives that were drawn elsewhere, scored, saved.

The losses are those of wav2vec 2.0 (arXiv 2006.11477, section 3.2) as transformers' Wav2Vec2ForPreTraining computes
them, for the masked frames alone: it quantises every frame of the padded batch and copies a vector for each negative,
which costs many times the memory.

Shapes: B utterances, T samples, F frames, C channels, M masked frames of the batch, K negatives of each, S = 1 + K
candidates, G codebooks of V codes, D dimensions of what is compared.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from w2v_lightning.data.batch import Batch
from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.encoder import contextualise, projected
from w2v_lightning.model.features import conv_features
from w2v_lightning.model.speed import Speed, to_device


def from_scratch(config: Mapping[str, object]) -> Wav2Vec2ForPreTraining:
    """A new model with random weights; `config` holds what differs from transformers' Wav2Vec2Config."""
    wav2vec2.check_config_keys(config)
    return Wav2Vec2ForPreTraining(Wav2Vec2Config(**config))


def from_pretrained(name_or_folder: str, config: Mapping[str, object]) -> tuple[Wav2Vec2ForPreTraining, bool]:
    """A pre-trained model from the Hugging Face hub or a local folder, and whether its input is normalised.

    Raises:
        InputError: nothing there, not a wav2vec2 model, or one without the codebooks of pre-training.
    """
    wav2vec2.check_config_keys(config)
    stored = wav2vec2.stored_config(name_or_folder)
    model, loading = Wav2Vec2ForPreTraining.from_pretrained(
        name_or_folder,
        config=Wav2Vec2Config.from_dict({**stored.to_dict(), **config}),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if lost := sorted(loading["missing_keys"]):
        raise InputError(
            f"model.pretrained: {name_or_folder} lacks {len(lost)} weights of a model in pre-training, {lost[0]} first;"
            " leave it out to begin from random weights."
        )
    return model, wav2vec2.stored_normalise(name_or_folder)


def gumbel_temperature(update: int, start: float, end: float, decay: float) -> float:
    """Of the softmax that chooses codes, at each optimiser update 0, 1, 2 ...: start x decay^update, `end` at least."""
    return max(start * decay**update, end)


@dataclass(frozen=True)
class Outcome:
    """How well a batch's masked frames were told from their negatives: sums over the masked frames, on the device."""

    contrastive_loss: Tensor  # nats
    diversity_loss: Tensor  # 0 where all codes are used equally, nearly 1 a frame where always the same one is
    feature_penalty: Tensor  # mean square of the utterance's convolutional features, for each of its masked frames
    num_correct: Tensor  # frames whose own code scores above those of all negatives
    num_masked: Tensor
    code_counts_GV: Tensor

    @property
    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.contrastive_loss, self.diversity_loss, self.feature_penalty

    def sums(self) -> Tensor:
        """All of it in one vector, to add up over micro-batches and ranks: five numbers, then G x V counts."""
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
    """Mask the batch as it says, and tell each masked frame's code from those of its negatives.

    Args:
        model: transformers' model; in training mode codes are drawn with Gumbel noise at `model.quantizer.temperature`.
        batch: with `time_mask_BF`, `masked_M` and `negatives_MK`.
        feature_grad_mult: factor on the gradient that reaches the convolutions.
        dropped_layers: transformer layers that are skipped in this pass.
        speed: how it is computed.
    """
    core = model.wav2vec2
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
    """Quantise the true features of the masked frames and compare what the transformer predicted for them."""
    vectors_MD, choice_MGV, probs_MGV = quantise(model.quantizer, features_MC)
    codes_MG = choice_MGV.detach().argmax(dim=-1)
    same_code_MK = (codes_MG[negatives_MK] == codes_MG[:, None]).all(dim=-1)
    cosine_MS = candidate_cosine(predicted_MD, model.project_q(vectors_MD), negatives_MK)
    # A negative with the positive's own code is none, and would pull against it.
    is_none_MS = functional.pad(same_code_MK, (1, 0))
    logits_MS = (cosine_MS / model.config.contrastive_logits_temperature).masked_fill(is_none_MS, -torch.inf)
    # Where every negative has the frame's code there was no task: with a single code left, accuracy is 0 and not 1.
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


def quantise(quantizer: nn.Module, features_MC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Code vectors (M, D), the choice of codes (M, G, V) as zeros and ones, and its probabilities (M, G, V).

    In training the choice is drawn with Gumbel noise from torch's generator and passes the gradient straight through;
    else it is the most probable code, and its probabilities are the choice itself, as in transformers.
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
    """Cosine (M, S) of each prediction with its own target, first, and with those of its negatives; float32."""
    own_M = torch.arange(len(predicted_MD), device=negatives_MK.device)
    candidates_MS = torch.cat([own_M[:, None], negatives_MK], dim=1)
    with torch.autocast(predicted_MD.device.type, enabled=False):
        # All pairs of the batch are fewer numbers than K target vectors for each frame, up to M = K x D = 25,600.
        predicted_MD, targets_MD = (functional.normalize(x_MD.float(), dim=1) for x_MD in (predicted_MD, targets_MD))
        cosine_MM = predicted_MD @ targets_MD.T
    return cosine_MM.gather(1, candidates_MS)


def perplexity(probs_GV: Tensor) -> Tensor:
    """How many codes of each codebook (G,) are in use: V where all are equally, 1 where always the same one is."""
    return (-torch.xlogy(probs_GV, probs_GV).sum(dim=-1)).exp()


def unused_share(probs_MGV: Tensor) -> Tensor:
    """The diversity loss of one frame: (G V - sum of perplexities) / G V, over all frames of the micro-batch."""
    mean_GV = probs_MGV.sum(dim=0) / max(1, len(probs_MGV))
    return 1 - perplexity(mean_GV).sum() / mean_GV.numel()


def feature_penalty(conv_BFC: Tensor, num_frames_B: Tensor, num_masked_B: Tensor) -> Tensor:
    """Mean square of each utterance's features over its real frames, summed with the number of its masked frames.

    fairseq's `features_pen`, there a mean over all frames of a batch of equal lengths: the same for those, and here
    independent of how utterances are batched.
    """
    is_padding_BF = torch.arange(conv_BFC.shape[1], device=conv_BFC.device) >= num_frames_B[:, None]
    square_BF = conv_BFC.float().square().mean(dim=2).masked_fill(is_padding_BF, 0.0)
    return (square_BF.sum(dim=1) / num_frames_B * num_masked_B).sum()


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """`values` themselves, with `factor` on the gradient that passes through them."""
    if values.requires_grad and factor != 1.0:
        values.register_hook(lambda gradient: gradient * factor)
    return values


def save_pretrained(folder: Path, model: Wav2Vec2ForPreTraining, normalise: bool) -> None:
    """Write a Hugging Face folder that Wav2Vec2ForPreTraining loads; it appears complete or not at all."""
    with wav2vec2.complete_or_absent(folder) as temporary:
        model.save_pretrained(temporary)
        wav2vec2.feature_extractor(normalise).save_pretrained(temporary)
