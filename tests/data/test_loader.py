from itertools import chain

import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, spell, write_split
from transformers import Wav2Vec2FeatureExtractor

from w2v_lightning.data.batch import InputSpec, SpecAugment
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.loader import EvaluationSampler, Slot, TrainSampler, UtteranceDataset, normalise, read_audio
from w2v_lightning.errors import InputError
from w2v_lightning.text import Vocabulary

MASKED = InputSpec(spec_augment=SpecAugment(time_prob=0.65, channel_prob=0.5))
TEXTS = ["BAD CAB FACE", "A BED", "FADED CAFE FACADE"]


@pytest.fixture
def manifest(tmp_path):
    write_split(tmp_path / "corpus", "train", TEXTS)
    return load_split(tmp_path / "corpus", "train")


def tone(frequency_hz: float, duration_s: float, sample_rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * sample_rate)) / sample_rate)


def slot(*positions: int, **place) -> Slot:
    return Slot(np.array(positions), **place)


def durations_s(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1.4, 16.5, number)


def train_samplers(durations_s_N, world_size, *, seed=0, batch_seconds=300.0, device_seconds=40.0):
    limits = {"batch_seconds": batch_seconds, "device_seconds": device_seconds, "world_size": world_size}
    return [TrainSampler(durations_s_N, seed=seed, rank=rank, **limits) for rank in range(world_size)]


def positions(slots) -> list[int]:
    return list(chain.from_iterable(slot.positions.tolist() for slot in slots))


def test_audio_comes_as_float32_of_the_recorded_level(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440, 1, SAMPLE_RATE), SAMPLE_RATE)
    waveform_T = read_audio(str(path))
    assert waveform_T.dtype == np.float32
    np.testing.assert_allclose(waveform_T, tone(440, 1, SAMPLE_RATE), atol=1 / 2**15)


def test_stereo_is_averaged(tmp_path):
    left, right = tone(440, 0.5, SAMPLE_RATE), tone(1000, 0.5, SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE)
    np.testing.assert_allclose(read_audio(str(tmp_path / "a.wav")), (left + right) / 2, atol=1 / 2**15)


@pytest.mark.parametrize("sample_rate", [8_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_sample_rates_keep_pitch_level_and_duration(tmp_path, sample_rate, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(440, 0.75, sample_rate)] * channels, axis=1), sample_rate)
    waveform_T = read_audio(str(path))
    assert abs(len(waveform_T) - 0.75 * SAMPLE_RATE) <= 1
    inner = slice(500, 11_500)  # the ends ring
    np.testing.assert_allclose(waveform_T[inner], tone(440, 0.75, SAMPLE_RATE)[inner], atol=0.01)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot be read as audio"),
        (lambda path: path.write_text("no audio"), "cannot be read as audio"),
        (lambda path: soundfile.write(path, np.zeros(0), SAMPLE_RATE, format="WAV"), "there is no audio in it"),
    ],
)
def test_unreadable_audio_is_named(tmp_path, write, message):
    path = tmp_path / "a.flac"
    write(path)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        read_audio(str(path))


@pytest.mark.parametrize(
    "waveform_T", [spell("FACE"), np.full(1000, 0.3, dtype=np.float32), np.zeros(1000, dtype=np.float32)]
)
def test_normalise_agrees_with_transformers(waveform_T):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    expected = extractor(waveform_T, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values[0]
    normalised = normalise(waveform_T)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)


def test_batch_holds_the_utterances_of_its_slot(manifest):
    place = {"epoch": 4, "global_step": 3, "micro_batch": 1, "num_micro_batches": 2, "num_utterances_in_step": 9}
    batch = UtteranceDataset(manifest, InputSpec())[slot(2, 1, **place)]
    assert batch.ids == ["19-1-0002", "19-1-0001"]
    assert batch.texts == [TEXTS[2], TEXTS[1]]
    assert batch.num_labels_B.tolist() == [17, 5]
    for row, text in zip(batch.labels_BU.tolist(), batch.texts, strict=True):
        assert row == Vocabulary().encode(text) + [0] * (17 - len(text))
    assert batch.num_samples_B.tolist() == [17 * 1280, 5 * 1280]
    assert batch.num_frames_B.tolist() == [67, 19]
    for row_T, text in zip(batch.waveforms_BT.numpy(), batch.texts, strict=True):
        expected_T = normalise(spell(text))
        np.testing.assert_allclose(row_T[: len(expected_T)], expected_T, atol=1e-3)
        assert not row_T[len(expected_T) :].any()
    assert (batch.global_step, batch.micro_batch, batch.num_micro_batches, batch.num_utterances_in_step) == (3, 1, 2, 9)
    assert batch.time_mask_BF is None
    assert batch.channel_mask_BC is None


def test_batch_types_are_those_that_the_model_takes(manifest):
    batch = UtteranceDataset(manifest, MASKED, masked=True)[slot(0, 1)]
    assert batch.waveforms_BT.dtype == torch.float32
    assert {batch.labels_BU.dtype, batch.num_samples_B.dtype, batch.num_labels_B.dtype} == {torch.int64}
    assert (batch.time_mask_BF.dtype, batch.channel_mask_BC.dtype) == (torch.bool, torch.bool)
    assert batch.time_mask_BF.shape == (2, batch.num_frames_B.max())
    assert batch.channel_mask_BC.shape == (2, 768)


def test_models_without_normalisation_get_the_recorded_level(manifest):
    batch = UtteranceDataset(manifest, InputSpec(normalise=False))[slot(0)]
    np.testing.assert_allclose(batch.waveforms_BT[0], spell(TEXTS[0]), atol=1 / 2**15)


def test_transcripts_are_normalised_to_the_vocabulary(manifest):
    lower = InputSpec(vocabulary=Vocabulary(("<pad>", "|", *"abcdef")))
    batch = UtteranceDataset(manifest, lower)[slot(1)]
    assert batch.texts == ["a bed"]
    assert batch.labels_BU.tolist() == [[2, 1, 3, 6, 5]]


def test_utterance_is_the_same_whoever_its_neighbours_are(manifest):
    dataset = UtteranceDataset(manifest, MASKED, seed=5, masked=True)
    alone, together = dataset[slot(1, epoch=2)], dataset[slot(0, 1, 2, epoch=2)]
    num_samples, num_frames = int(alone.num_samples_B[0]), int(alone.num_frames_B[0])
    assert torch.equal(together.waveforms_BT[1, :num_samples], alone.waveforms_BT[0])
    assert torch.equal(together.time_mask_BF[1, :num_frames], alone.time_mask_BF[0])
    assert torch.equal(together.channel_mask_BC[1], alone.channel_mask_BC[0])
    assert alone.time_mask_BF.any()
    assert not together.time_mask_BF[1, num_frames:].any()


def test_masks_change_with_epoch_and_seed_and_with_nothing_else(manifest):
    def masks(seed=5, **place):
        batch = UtteranceDataset(manifest, MASKED, seed=seed, masked=True)[slot(0, 2, **place)]
        return torch.cat([batch.time_mask_BF, batch.channel_mask_BC], dim=1)

    assert torch.equal(masks(epoch=1), masks(epoch=1, global_step=8, micro_batch=1, num_micro_batches=2))
    assert not torch.equal(masks(epoch=1), masks(epoch=2))
    assert not torch.equal(masks(epoch=1), masks(epoch=1, seed=6))


@pytest.mark.parametrize("kind", ["time", "channel"])
def test_only_the_masks_that_are_asked_for_are_made(manifest, kind):
    spec = InputSpec(spec_augment=SpecAugment(**{f"{kind}_prob": 0.5}))
    batch = UtteranceDataset(manifest, spec, masked=True)[slot(0)]
    assert (batch.time_mask_BF is not None, batch.channel_mask_BC is not None) == (kind == "time", kind == "channel")


def test_audio_shorter_than_the_manifest_says_is_refused_before_the_model_sees_it(manifest):
    path = manifest.audio_paths[1]
    soundfile.write(path, np.zeros(399), SAMPLE_RATE)
    with pytest.raises(InputError, match=f"{path}: 399 samples at 16000 Hz, the model needs 400"):
        UtteranceDataset(manifest, InputSpec())[slot(1)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_complete_and_in_step(world_size):
    durations_s_N = durations_s(200)
    samplers = train_samplers(durations_s_N, world_size)
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert sorted(chain.from_iterable(map(positions, shares))) == list(range(200))
        assert {len(share) for share in shares} == {len(samplers[0])}
        for together in zip(*shares, strict=True):
            places = {
                (s.epoch, s.global_step, s.micro_batch, s.num_micro_batches, s.num_utterances_in_step) for s in together
            }
            assert len(places) == 1
            assert places.pop()[0] == epoch


def test_slots_count_through_the_epoch_and_know_the_size_of_their_step():
    samplers = train_samplers(durations_s(200), 2)
    number = samplers[0].num_micro_batches
    shares = [list(sampler) for sampler in samplers]
    assert [(s.global_step, s.micro_batch) for s in shares[0]] == [
        (step, micro_batch) for step in range(samplers[0].num_steps) for micro_batch in range(number)
    ]
    for step in range(samplers[0].num_steps):
        of_step = [s for share in shares for s in share if s.global_step == step]
        assert {s.num_utterances_in_step for s in of_step} == {sum(len(s.positions) for s in of_step)}


def test_steps_are_the_same_on_any_machine():
    durations_s_N = durations_s(200)

    def steps(world_size, device_seconds):
        samplers = train_samplers(durations_s_N, world_size, device_seconds=device_seconds)
        slots = list(chain.from_iterable(samplers))
        return [{*positions(s for s in slots if s.global_step == step)} for step in range(samplers[0].num_steps)]

    reference = steps(1, 300)
    assert all(steps(*machine) == reference for machine in [(1, 40), (2, 60), (3, 45), (4, 300)])


def test_order_changes_with_epoch_and_seed_only():
    (sampler,), (again,), (other,) = (train_samplers(durations_s(100), 1, seed=seed) for seed in (0, 0, 1))
    first = positions(sampler)
    assert positions(again) == positions(sampler) == first != positions(other)
    sampler.set_epoch(1)
    assert positions(sampler) != first
    sampler.set_epoch(0)
    assert positions(sampler) == first


def test_too_many_devices_for_a_step_get_fillers_that_do_not_count():
    durations_s_N = durations_s(100)
    samplers = train_samplers(durations_s_N, 40)
    slots = [list(sampler) for sampler in samplers]
    assert len({len(rank) for rank in slots}) == 1  # no rank waits for a batch that does not come
    counted = [slot for rank in slots for slot in rank if not slot.is_filler]
    fillers = [slot for rank in slots for slot in rank if slot.is_filler]
    assert sorted(positions(counted)) == list(range(100))
    assert fillers
    assert {len(slot.positions) for slot in fillers} == {1}
    for slot in fillers:
        assert slot.positions[0] in positions(s for s in counted if s.global_step == slot.global_step)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("number", [1, 4, 73])
def test_evaluation_covers_each_utterance_once_over_the_ranks(world_size, number):
    durations_s_N = durations_s(number)
    samplers = [
        EvaluationSampler(durations_s_N, device_seconds=35, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(chain.from_iterable(map(positions, samplers))) == list(range(number))
    assert max(map(len, samplers)) - min(map(len, samplers)) <= 1
    before = [positions(sampler) for sampler in samplers]
    for sampler in samplers:
        sampler.set_epoch(3)
    assert [positions(sampler) for sampler in samplers] == before
