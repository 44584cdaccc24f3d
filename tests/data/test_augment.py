import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, spell, write_split

from w2v_lightning.data.augment import Augmentation, Augmenter, add_noise, change_speed, list_noises
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.data.draw import Draw, utterance_rng
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError

SPEEDS = Augmentation(speeds=(0.9, 1.0, 1.1))
PLAIN = InputSpec(normalise=False)


def tone(frequency_hz: float, duration_s: float, level: float = 0.5) -> np.ndarray:
    t = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


def pitch_hz(waveform_T: np.ndarray) -> float:
    return np.abs(np.fft.rfft(waveform_T * np.hanning(len(waveform_T)))).argmax() * SAMPLE_RATE / len(waveform_T)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def noises(tmp_path):
    folder = tmp_path / "noises" / "deep"
    folder.mkdir(parents=True)
    soundfile.write(folder / "hiss.wav", 0.1 * rng().standard_normal(SAMPLE_RATE // 2), SAMPLE_RATE)
    soundfile.write(folder / "hum.flac", tone(100, 3, 0.2), SAMPLE_RATE)
    (folder / "README").write_text("no audio")
    return str(tmp_path / "noises")


@pytest.fixture
def manifest(tmp_path):
    write_split(tmp_path / "corpus", "train", ["BAD CAB FACE", "A BED", "FADED CAFE FACADE"])
    return load_split(tmp_path / "corpus", "train")


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_tempo_and_pitch(factor):
    changed = change_speed(tone(440, 2), factor)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(2 * SAMPLE_RATE / factor, abs=2)
    assert pitch_hz(changed) == pytest.approx(440 * factor, abs=1)
    assert np.abs(changed[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
def test_noise_is_added_at_its_signal_to_noise_ratio(snr_db):
    speech_T, noise_T = tone(440, 1), rng().standard_normal(SAMPLE_RATE).astype(np.float32)
    added = add_noise(speech_T, noise_T, snr_db) - speech_T
    assert 10 * np.log10(np.mean(speech_T**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)
    assert np.corrcoef(added, noise_T)[0, 1] > 0.999


def test_silent_noise_adds_nothing():
    assert np.array_equal(add_noise(tone(440, 1), np.zeros(SAMPLE_RATE, np.float32), 10), tone(440, 1))


def test_a_noise_shorter_than_the_speech_is_repeated(noises):
    options = Augmentation(noise_folder=noises, noise_prob=1.0, noise_snr_db=(0, 0))
    for seed in range(5):
        noisy = Augmenter(options)(tone(440, 5), 400, rng(seed))
        assert len(noisy) == 5 * SAMPLE_RATE
        assert np.abs((noisy - tone(440, 5))[-1000:]).max() > 0.01


def test_noise_falls_on_its_share_of_the_utterances(noises):
    augment = Augmenter(Augmentation(noise_folder=noises, noise_prob=0.3))
    noisy = [not np.array_equal(augment(tone(440, 0.1), 400, rng(seed)), tone(440, 0.1)) for seed in range(300)]
    assert 0.2 < np.mean(noisy) < 0.4


def test_gain_is_within_its_range_and_clips():
    quiet, loud = Augmenter(Augmentation(gain_db=(-20, -6))), Augmenter(Augmentation(gain_db=(20, 20)))
    levels = [np.abs(quiet(tone(440, 0.1), 400, rng(seed))).max() for seed in range(50)]
    assert min(levels) >= 0.05 * 0.99
    assert max(levels) <= 0.5 * 10 ** (-6 / 20) * 1.01
    assert max(levels) > 2 * min(levels)
    assert np.abs(loud(tone(440, 0.1), 400, rng())).max() == 1


def test_all_is_off_by_default():
    assert np.array_equal(Augmenter(Augmentation())(tone(440, 1), 400, rng()), tone(440, 1))


def test_draws_belong_to_seed_epoch_and_utterance(manifest, noises):
    options = Augmentation(speeds=(0.9, 1.0, 1.1), noise_folder=noises, noise_prob=1.0, gain_db=(-6, 6))

    def augmented(position, neighbours=(), seed=5, epoch=0):
        dataset = UtteranceDataset(manifest, PLAIN, seed=seed, augmentation=options)
        batch = dataset[Slot(np.array([position, *neighbours]), epoch=epoch)]
        return batch.waveforms_BT[0, : batch.num_samples_B[0]]

    assert torch.equal(augmented(1), augmented(1, neighbours=(0, 2)))
    assert not torch.equal(augmented(1)[:3000], augmented(1, seed=6)[:3000])
    assert not torch.equal(augmented(1)[:3000], augmented(1, epoch=1)[:3000])


def test_switching_one_on_leaves_the_draws_of_the_others(noises):
    speeds = [len(Augmenter(SPEEDS)(tone(440, 1), 400, rng(seed))) for seed in range(20)]
    all_on = Augmentation(SPEEDS.speeds, noises, noise_prob=1.0, gain_db=(-6, 6))
    assert [len(Augmenter(all_on)(tone(440, 1), 400, rng(seed))) for seed in range(20)] == speeds
    assert len(set(speeds)) == 3


def test_masks_do_not_change_when_augmentation_is_switched_on():
    first = utterance_rng(Draw.MASKS, 1, 2, "a").random(5)
    assert not np.array_equal(first, utterance_rng(Draw.AUGMENTATION, 1, 2, "a").random(5))
    assert np.array_equal(first, utterance_rng(Draw.MASKS, 1, 2, "a").random(5))


def test_an_utterance_is_not_made_too_short_for_its_transcript(manifest):
    """Keep the speed if frames would not suffice: spell() has 4 frames per letter, 2 at double speed; "AA" needs 3."""
    fast = UtteranceDataset(manifest, PLAIN, augmentation=Augmentation(speeds=(2.0,)))
    slow_model = InputSpec(normalise=False, conv_kernel=(640,), conv_stride=(640,))  # two frames per letter
    assert fast[Slot(np.array([0]))].num_samples_B[0] < len(spell("BAD CAB FACE"))
    kept = UtteranceDataset(manifest, slow_model, augmentation=Augmentation(speeds=(1.9,)))[Slot(np.array([0]))]
    assert kept.num_frames_B[0] >= kept.num_labels_B[0]
    too_fast = InputSpec(normalise=False, conv_kernel=(1200,), conv_stride=(1200,))
    kept = UtteranceDataset(manifest, too_fast, augmentation=Augmentation(speeds=(2.0,)))[Slot(np.array([0]))]
    assert kept.num_samples_B[0] == len(spell("BAD CAB FACE"))


def test_slowed_down_utterances_stay_within_device_seconds(tmp_path):
    write_split(tmp_path / "corpus", "train", ["BAD CAB FACE", "A BED"] * 20)
    slow = Augmentation(speeds=(0.5,))
    data = LibriSpeechDataModule(
        str(tmp_path / "corpus"), ["train"], ["train"], batch_seconds=12, device_seconds=4, augmentation=slow,
        num_workers=0,
    )  # fmt: skip
    data.setup("fit")
    for batch in data.train_dataloader():
        assert batch.waveforms_BT.numel() <= 4.001 * SAMPLE_RATE
    for batch in data.val_dataloader()[0]:
        assert {len("BAD CAB FACE") * 1280, len("A BED") * 1280} >= set(batch.num_samples_B.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speeds": ()}, r"speeds must be factors from 0\.5 to 2, found \[\]"),
        ({"speeds": (1.0, 0.1)}, r"speeds must be factors from 0\.5 to 2, found \[1\.0, 0\.1\]"),
        ({"noise_prob": 1.5}, r"noise_prob must be from 0 to 1, found 1\.5"),
        ({"noise_snr_db": (20, 5)}, "noise_snr_db must be two numbers in rising order, found 20, 5"),
        ({"gain_db": (3, -3)}, "gain_db must be two numbers in rising order, found 3, -3"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=f"^data.augmentation.{message}"):
        Augmentation(**options)


def test_noise_folders_are_checked_before_training(tmp_path, noises):
    assert [duration_s for _, duration_s in list_noises(noises)] == [0.5, 3.0]
    with pytest.raises(InputError, match=f"noise_folder: {tmp_path}/none holds no audio file"):
        Augmenter(Augmentation(noise_folder=str(tmp_path / "none")))
    (tmp_path / "noises" / "bad.wav").write_text("no audio")
    with pytest.raises(InputError, match=r"noise_folder: .*bad\.wav cannot be read as audio"):
        Augmenter(Augmentation(noise_folder=noises))
