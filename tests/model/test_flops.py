import pytest
import torch
from tiny import TINY_CONFIG
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from w2v_lightning.model.flops import forward_flops, training_flops

# The kernel is odd, because an even one computes one more frame than it keeps. There is one group, because torch counts
# the gradients of a grouped convolution as if it had one.
CONFIG = Wav2Vec2Config(
    **{**TINY_CONFIG, "num_conv_pos_embeddings": 15, "num_conv_pos_embedding_groups": 1, "vocab_size": 40},
    layerdrop=0.0,
    mask_time_prob=0.0,
    attn_implementation="eager",
)
SAMPLES = 32_000


def counted(*, backward: bool, trains_feature_encoder: bool = True) -> int:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(CONFIG).train()
    if not trains_feature_encoder:
        model.freeze_feature_encoder()
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.randn(2, SAMPLES)).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def test_forward_is_what_torch_counts():
    assert forward_flops(CONFIG, [SAMPLES, SAMPLES]) == pytest.approx(counted(backward=False), rel=1e-6)


@pytest.mark.parametrize("trains_feature_encoder", [True, False])
def test_training_is_what_torch_counts(trains_feature_encoder):
    actual = training_flops(CONFIG, [SAMPLES, SAMPLES], trains_feature_encoder=trains_feature_encoder)
    expected = counted(backward=True, trains_feature_encoder=trains_feature_encoder)
    assert expected <= actual <= 1.06 * expected  # torch does not compute gradients of frozen parts


def test_lengths_count_one_by_one_and_padding_does_not():
    alone = sum(forward_flops(CONFIG, [samples]) for samples in (16_000, 48_000))
    assert forward_flops(CONFIG, torch.tensor([16_000, 48_000])) == pytest.approx(alone)
    assert alone > 2 * forward_flops(CONFIG, [32_000])  # attention is quadratic
    assert forward_flops(CONFIG, [10]) == 0  # too short for a frame


def test_positional_convolution_counts_by_group():
    of = {groups: forward_flops(Wav2Vec2Config(num_conv_pos_embedding_groups=groups), [SAMPLES]) for groups in (1, 16)}
    num_frames = 99
    assert of[1] - of[16] == pytest.approx(2 * num_frames * 768 * 768 * 128 * 15 / 16)


def test_base_is_what_its_size_says():
    """GFLOP per second of audio: feature encoder 4.9; for 50 frames: layers' matrices 8.5, attention at 12 s 1.1,
    positional convolution 0.5."""
    base = Wav2Vec2Config(layerdrop=0.0)
    per_second = training_flops(base, [16_000 * 12], trains_feature_encoder=False) / 12
    assert per_second == pytest.approx((4.9 + 3 * (8.5 + 1.1 + 0.5)) * 1e9, rel=0.01)
    dropped = training_flops(Wav2Vec2Config(layerdrop=0.1), [16_000 * 12], trains_feature_encoder=False) / 12
    assert per_second - dropped == pytest.approx(0.1 * 3 * (8.5 + 1.1) * 1e9, rel=0.02)
