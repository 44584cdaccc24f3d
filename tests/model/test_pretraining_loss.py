"""Loss and gradients of pre-training against transformers' Wav2Vec2ForPreTraining, on the same masks and negatives."""

import numpy as np
import pytest
import torch
from tiny import TINY_CONFIG
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _sample_negative_indices

from w2v_lightning.data.batch import Batch
from w2v_lightning.data.masking import span_mask
from w2v_lightning.data.negatives import contrastive_indices, draw_negatives
from w2v_lightning.model import pretraining

NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout", "layerdrop"),
    0.0,
)
CODEBOOKS = {
    "num_codevector_groups": 2,
    "num_codevectors_per_group": 40,
    "codevector_dim": 32,
    "proj_codevector_dim": 24,
    "num_negatives": 20,
    "feat_quantizer_dropout": 0.0,
}
NUM_SAMPLES = [16_000, 12_000, 8_000]


class ExactStraightThrough(torch.autograd.Function):
    """Straight-through softmax: one-hot forward, softmax backward. torch's own sum leaves rounding errors in the 1."""

    @staticmethod
    def forward(ctx, logits, tau):
        ctx.save_for_backward((logits / tau).softmax(-1))
        ctx.tau = tau
        return functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits)

    @staticmethod
    def backward(ctx, gradient):
        (soft,) = ctx.saved_tensors
        return soft * (gradient - (gradient * soft).sum(-1, keepdim=True)) / ctx.tau, None


@pytest.fixture
def without_noise(monkeypatch):
    """Disable the noise: both models quantise frames in different orders and would draw different codes."""
    monkeypatch.setattr(functional, "gumbel_softmax", lambda logits, tau, hard: ExactStraightThrough.apply(logits, tau))


def a_model(**config) -> Wav2Vec2ForPreTraining:
    torch.manual_seed(0)
    return Wav2Vec2ForPreTraining(Wav2Vec2Config(**{**TINY_CONFIG, **NO_DROPOUT, **CODEBOOKS, **config}))


def a_batch(model, num_samples=NUM_SAMPLES, time_prob=0.65) -> Batch:
    num_samples_B = torch.tensor(num_samples)
    num_frames_B = model._get_feat_extract_output_lengths(num_samples_B)
    masks = [
        span_mask(n, time_prob, 5, 2, np.random.default_rng(row)) if time_prob else np.zeros(n, dtype=bool)
        for row, n in enumerate(num_frames_B.tolist())
    ]
    time_mask_BF = torch.zeros(len(masks), max(map(len, masks)), dtype=torch.bool)
    for row, mask in zip(time_mask_BF, masks, strict=True):
        row[: len(mask)] = torch.from_numpy(mask)
    rngs = [np.random.default_rng(100 + row) for row in range(len(masks))]
    masked_M, negatives_MK = contrastive_indices(masks, max(map(len, masks)), model.config.num_negatives, rngs)
    generator = torch.Generator().manual_seed(1)
    waveforms_BT = torch.randn(len(masks), max(num_samples), generator=generator)
    return Batch(
        waveforms_BT=waveforms_BT * (torch.arange(max(num_samples)) < num_samples_B[:, None]),
        num_samples_B=num_samples_B,
        num_frames_B=num_frames_B,
        labels_BU=torch.zeros(len(masks), 0, dtype=torch.int64),
        num_labels_B=torch.zeros(len(masks), dtype=torch.int64),
        ids=[str(row) for row in range(len(masks))],
        texts=[""] * len(masks),
        time_mask_BF=time_mask_BF,
        masked_M=torch.from_numpy(masked_M),
        negatives_MK=torch.from_numpy(negatives_MK),
    )


def of_transformers(model, batch):
    """Return the output of transformers' forward, which takes negatives for every frame, as positions in B x F."""
    shape = (*batch.time_mask_BF.shape, batch.negatives_MK.shape[1])
    negatives = torch.zeros(shape, dtype=torch.int64)
    negatives.view(-1, shape[-1])[batch.masked_M] = batch.masked_M[batch.negatives_MK.long()]
    return model(
        batch.waveforms_BT,
        attention_mask=torch.arange(batch.waveforms_BT.shape[1]) < batch.num_samples_B[:, None],
        mask_time_indices=batch.time_mask_BF,
        sampled_negative_indices=negatives,
    )


def our_loss(model, batch, **options):
    outcome = pretraining.run(model, batch, **options)
    return outcome, outcome.contrastive_loss + model.config.diversity_loss_weight * outcome.diversity_loss


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(ours, outcome, theirs):
    num_masked = outcome.num_masked
    for mine, reference in (
        (outcome.contrastive_loss, theirs.contrastive_loss),
        (outcome.diversity_loss, theirs.diversity_loss),
        (ours, theirs.loss),
    ):
        torch.testing.assert_close(mine / num_masked, reference / num_masked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stable", [True, False])
def test_scored_as_transformers_does(stable):
    model = a_model(do_stable_layer_norm=stable).eval()
    batch = a_batch(model)
    outcome, loss = our_loss(model, batch)
    check_equal(loss, outcome, of_transformers(model, batch))
    assert outcome.num_masked == batch.time_mask_BF.sum() > 40


def test_group_norm_sees_no_padding_and_alone_is_that_of_transformers():
    model = a_model(feat_extract_norm="group").eval()
    batch = a_batch(model, [16_000])
    outcome, loss = our_loss(model, batch)
    check_equal(loss, outcome, of_transformers(model, batch))


@pytest.mark.usefixtures("without_noise")
def test_loss_and_gradients_in_training_are_those_of_transformers():
    model = a_model().train()
    model.set_gumbel_temperature(1.5)
    batch = a_batch(model)
    theirs = of_transformers(model, batch)
    expected = gradients(model, theirs.loss / batch.time_mask_BF.sum())
    outcome, loss = our_loss(model, batch)
    check_equal(loss, outcome, theirs)
    actual = gradients(model, loss / outcome.num_masked)
    assert actual.keys() == expected.keys()
    assert {"quantizer.codevectors", "quantizer.weight_proj.weight", "wav2vec2.masked_spec_embed"} <= actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_half_precision_changes_little():
    model = a_model().eval()
    batch = a_batch(model)
    outcome, _ = our_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half, loss = our_loss(model, batch)
    assert half.contrastive_loss.dtype == torch.float32
    torch.testing.assert_close(half.contrastive_loss, outcome.contrastive_loss, rtol=0.05, atol=0.0)
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())


def test_codes_are_drawn_with_noise_in_training_and_not_in_evaluation():
    model = a_model()
    features_MC = torch.randn(30, TINY_CONFIG["conv_dim"][-1])
    for mode, is_equal in ((True, False), (False, True)):
        model.train(mode)
        vectors = [pretraining.quantise(model.quantizer, features_MC)[0] for _ in range(2)]
        assert torch.equal(*vectors) == is_equal


def test_a_negative_with_the_same_code_is_none_and_a_collapsed_codebook_is_never_right():
    model = a_model().eval()
    with torch.no_grad():
        model.quantizer.weight_proj.weight.zero_()  # every frame has code 0
    outcome, _ = our_loss(model, a_batch(model))
    assert outcome.contrastive_loss == 0
    assert outcome.num_correct == 0
    assert (outcome.code_counts_GV[:, 0] == outcome.num_masked).all()
    expected = outcome.num_masked * (1 - 2 / 80)  # one of 40 codes in each of 2 codebooks
    torch.testing.assert_close(outcome.diversity_loss, expected)


def test_without_masked_frames_the_loss_is_zero_and_so_is_every_gradient():
    model = a_model().train()
    outcome, loss = our_loss(model, a_batch(model, [4_000], time_prob=0))
    assert outcome.num_masked == loss == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(model, loss + outcome.feature_penalty).values())


def test_gradient_of_the_convolutions_is_scaled_and_no_other():
    model = a_model().eval()
    batch = a_batch(model)
    whole = gradients(model, our_loss(model, batch)[1])
    scaled = gradients(model, our_loss(model, batch, feature_grad_mult=0.1)[1])
    for name, gradient in whole.items():
        factor = 0.1 if "feature_extractor" in name else 1.0
        torch.testing.assert_close(scaled[name], factor * gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_feature_penalty_is_the_mean_square_of_real_frames_for_each_masked_one():
    conv_BFC = torch.tensor([[[1.0, 3.0], [1.0, 1.0]], [[2.0, 2.0], [9.0, 9.0]]])
    penalty = pretraining.feature_penalty(conv_BFC, torch.tensor([2, 1]), torch.tensor([2, 1]))
    assert penalty == 2 * (1 + 9 + 1 + 1) / 4 + 1 * 4


def test_perplexity_counts_the_codes_in_use():
    probs_GV = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [1.0, 0, 0, 0]])
    torch.testing.assert_close(pretraining.perplexity(probs_GV), torch.tensor([4.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    ("update", "expected"), [(0, 2.0), (1, 1.8), (2, 1.62), (13, 2 * 0.9**13), (14, 0.5), (10**6, 0.5)]
)
def test_temperature_falls_exponentially_to_its_end(update, expected):
    assert pretraining.gumbel_temperature(update, 2.0, 0.5, 0.9) == pytest.approx(expected)


# ---- negatives ------------------------------------------------------------------------------------------------------


def test_negatives_are_other_masked_frames_of_the_same_utterance():
    masks = [np.arange(50) % 3 == 0, np.zeros(20, dtype=bool), np.arange(40) > 30, np.arange(9) == 4]
    masked_M, negatives_MK = contrastive_indices(masks, 50, 30, [np.random.default_rng(i) for i in range(4)])
    # The last utterance has a single masked frame, which has no negatives.
    expected = [50 * row + frame for row in (0, 2) for frame in np.flatnonzero(masks[row])]
    assert masked_M.tolist() == expected
    assert negatives_MK.shape == (len(expected), 30)
    utterance_M = masked_M // 50
    assert (utterance_M[negatives_MK] == utterance_M[:, None]).all()
    assert (negatives_MK != np.arange(len(expected))[:, None]).all()


def test_negatives_are_uniform_over_the_others():
    """Compare with transformers' sampling: every other frame has the same mean count in both."""
    ours = draw_negatives(5, 20_000, np.random.default_rng(0))
    np.random.seed(0)
    theirs = _sample_negative_indices((1, 5), 20_000, np.ones((1, 5), dtype=bool))[0]
    for drawn_MK in (ours, theirs):
        counts = np.stack([np.bincount(row, minlength=5) for row in drawn_MK])
        assert (np.diag(counts) == 0).all()
        others = counts[~np.eye(5, dtype=bool)]
        assert abs(others - 5_000).max() < 5 * np.sqrt(5_000)
