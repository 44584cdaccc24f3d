from dataclasses import replace

import numpy as np
import pytest
import torch

from w2v_lightning.bench.workload import like_librispeech, without_padding, workloads
from w2v_lightning.data.batch import InputSpec, SpecAugment
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError

SPEC = InputSpec(num_channels=48, spec_augment=SpecAugment(time_prob=0.65, channel_prob=0.5, channel_length=16))


def manifest(number: int = 60) -> Manifest:
    durations_s_N = np.linspace(1.0, 3.0, number).round(3)
    names = [f"u{i}" for i in range(number)]
    return Manifest(names, names, durations_s_N, ["AB CD"] * number, names)


def made(device_seconds, sample_rate=16_000, **options):
    settings = {"batch_seconds": 24.0, "num_steps": 3, "pin": False, **options}
    return workloads(manifest(), replace(SPEC, sample_rate=sample_rate), device_seconds=device_seconds, **settings)


def test_the_same_utterances_however_a_step_is_cut():
    whole, cut = made([24.0, 7.0]).values()
    assert (whole.num_micro_batches, len(whole.steps)) == (1, 3)
    assert cut.num_micro_batches >= 3
    ids = [[sorted(name for batch in step for name in batch.ids) for step in load.steps] for load in (whole, cut)]
    assert ids[0] == ids[1]
    assert whole.audio_s == cut.audio_s
    assert all(batch.waveforms_BT.numel() <= 7.0 * 16_000 for batch in cut.batches)


@pytest.mark.parametrize("sample_rate", [16_000, 8_000])
def test_audio_is_counted_and_padding_is_not(sample_rate):
    (load,) = made([24.0], sample_rate).values()
    durations = dict(zip(manifest().ids, manifest().durations_s_N, strict=True))
    audio_s = sum(durations[name] for batch in load.batches for name in batch.ids)
    computed_s = sum(len(batch) * max(durations[name] for name in batch.ids) for batch in load.batches)
    assert load.audio_s == pytest.approx(audio_s, abs=1e-3)
    assert load.padding == pytest.approx(1 - audio_s / computed_s, abs=0.016)  # and a batch may be a little longer
    assert load.padding > 0.005
    assert sum(load.num_samples) == pytest.approx(audio_s * sample_rate, abs=60)


def test_a_batch_is_what_a_loader_worker_makes():
    (load,) = made([7.0]).values()
    batch = load.batches[0]
    assert batch.waveforms_BT.dtype == torch.int16
    assert batch.time_mask_BF.any()
    assert batch.channel_mask_BC.any()
    assert batch.num_utterances_in_step == sum(len(other) for other in load.steps[0])


def test_steps_are_spread_over_the_durations():
    (load,) = made([24.0]).values()
    means = sorted(np.mean([n for batch in step for n in batch.num_samples_B]) for step in load.steps)
    assert means[0] < 1.5 * 16_000
    assert means[-1] > 2.4 * 16_000


def test_without_padding_all_are_as_long_as_the_shortest():
    (load,) = made([7.0]).values()
    padded = next(batch for batch in load.batches if len(set(batch.num_samples_B.tolist())) > 1)
    batch, shortest = without_padding(padded), int(padded.num_samples_B.min())
    assert batch.waveforms_BT.shape[1] == shortest < padded.waveforms_BT.shape[1]
    assert batch.num_samples_B.tolist() == [shortest] * len(batch)
    assert batch.time_mask_BF.shape[1] == int(batch.num_frames_B[0]) == SPEC.num_frames(shortest)
    assert batch.num_utterances_in_step == len(batch)


def test_durations_are_like_those_of_train_clean_100():
    drawn = like_librispeech(InputSpec())
    assert len(drawn) == 28_539
    assert drawn.durations_s_N.mean() == pytest.approx(12.7, abs=0.1)
    assert 1.5 < drawn.durations_s_N.min() < drawn.durations_s_N.max() <= 17
    assert set("".join(drawn.texts[:20])) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_seconds": [2.0]}, "longest utterance lasts 3.00 s, but --device_seconds is 2"),
        (
            {"device_seconds": [24.0], "num_steps": 50},
            r"the data make \d steps of 24 s: lower --steps or --batch_seconds",
        ),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        made(**options)
