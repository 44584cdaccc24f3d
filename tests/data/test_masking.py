import numpy as np
import pytest

from w2v_lightning.data.batch import SpecAugment
from w2v_lightning.data.draw import Draw, utterance_rng
from w2v_lightning.data.masking import draw_masks, span_mask, warn_of_start_probability

BASE_100H = SpecAugment(time_prob=0.65, time_length=10, channel_prob=0.5, channel_length=64)


def masks(seed=0, epoch=0, utterance_id="19-198-0000", num_frames=700, spec=BASE_100H):
    return draw_masks(spec, num_frames, 768, utterance_rng(Draw.MASKS, seed, epoch, utterance_id))


def runs(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("num_frames", [400, 700, 1600])
def test_published_settings_mask_49_percent_of_frames_and_40_percent_of_channels(num_frames):
    draws = [masks(utterance_id=f"utterance {i}", num_frames=num_frames) for i in range(400)]
    assert np.mean([time for time, _ in draws]) == pytest.approx(0.49, abs=0.015)
    assert np.mean([channel for _, channel in draws]) == pytest.approx(0.40, abs=0.015)


def test_every_stretch_is_at_least_one_span_long():
    draws = [masks(utterance_id=f"utterance {i}", num_frames=100) for i in range(200)]
    assert min(length for time, _ in draws for length in runs(time)) == 10
    assert min(length for _, channel in draws for length in runs(channel)) == 64


def test_first_and_last_frames_can_be_masked_and_none_always_is():
    share_F = np.mean([masks(utterance_id=f"utterance {i}", num_frames=60)[0] for i in range(500)], axis=0)
    assert share_F.min() > 0
    assert share_F.max() < 0.8


def test_draw_belongs_to_seed_epoch_and_utterance():
    again = masks()
    assert all((first == second).all() for first, second in zip(masks(), again, strict=True))
    for other in (masks(seed=1), masks(epoch=1), masks(utterance_id="19-198-0001")):
        assert (other[0] != again[0]).any()
        assert (other[1] != again[1]).any()


def test_seed_and_epoch_are_not_interchangeable():
    assert (masks(seed=1, epoch=2)[0] != masks(seed=2, epoch=1)[0]).any()


@pytest.mark.parametrize("num_frames", [0, 1, 9, 10])
def test_utterance_no_longer_than_a_span_gets_no_time_mask(num_frames):
    time_mask_F, channel_mask_C = masks(num_frames=num_frames)
    assert time_mask_F.shape == (num_frames,)
    assert not time_mask_F.any()
    assert channel_mask_C.any()


def test_short_utterances_get_the_least_number_of_spans():
    few = SpecAugment(time_prob=0.01, time_length=10, time_min_spans=2)
    counts = [masks(utterance_id=str(i), num_frames=200, spec=few)[0].sum() for i in range(100)]
    assert min(counts) > 10  # two spans never start at the same frame
    assert max(counts) == 20


def test_number_of_spans_is_rounded_at_random_so_that_the_mean_is_kept():
    rng = np.random.default_rng(0)
    spans = [span_mask(1000, 0.025, 10, 0, rng).sum() / 10 for _ in range(2000)]
    assert np.mean(spans) == pytest.approx(2.5, abs=0.1)


def test_nothing_is_masked_at_probability_zero():
    time_mask_F, channel_mask_C = masks(spec=SpecAugment())
    assert not time_mask_F.any()
    assert not channel_mask_C.any()


def test_more_spans_than_places_mask_all_places():
    assert span_mask(12, 10.0, 10, 0, np.random.default_rng(0)).all()


@pytest.mark.parametrize(
    ("prob", "length", "conversions"),
    [
        (0.065, 10, "start probability 0.065 is 0.65 here, and 0.065 here is start probability 0.0065"),
        (0.008, 64, "start probability 0.008 is 0.512 here, and 0.008 here is start probability 0.00013"),
    ],
)
def test_a_probability_in_the_papers_unit_is_named_with_both_conversions(caplog, prob, length, conversions):
    warn_of_start_probability("model.mask_time_prob", prob, length)
    (record,) = caplog.records
    assert f"model.mask_time_prob={prob}" in record.message
    assert conversions in record.message


@pytest.mark.parametrize(("prob", "length"), [(0.65, 10), (0.1, 10), (0.0, 10), (0.5, 64)])
def test_a_probability_in_fairseqs_unit_passes_in_silence(caplog, prob, length):
    warn_of_start_probability("model.mask_time_prob", prob, length)
    assert not caplog.records
