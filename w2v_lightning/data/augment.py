"""Augmentation of waveforms in the loader worker: speed, noise, gain. All off by default.

Every random draw is seeded with (seed, epoch, utterance), so it does not depend on batching, workers or ranks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.data.decode import read_audio
from w2v_lightning.data.librispeech import AUDIO_SUFFIXES
from w2v_lightning.data.opening import opened
from w2v_lightning.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """Options of the augmentation of training utterances, which comes before normalisation.

    Args:
        speeds: factors; one is drawn per utterance and epoch; tempo and pitch change together, as on a tape.
            The usual three are 0.9, 1.0 and 1.1 (Ko et al. 2015, "Audio augmentation for speech recognition").
        noise_folder: folder of audio files, searched recursively (such as MUSAN); a random part of a random file is
            added.
        noise_prob: probability that noise is added to an utterance.
        noise_snr_db: range of the signal-to-noise ratio, in dB of mean power over the utterance; drawn uniformly.
        gain_db: range of the gain in dB, drawn uniformly; samples outside [-1, 1] are clipped. If the model normalises
            its input, the clipping is the only effect of a gain.
    """

    speeds: Sequence[float] = (1.0,)
    noise_folder: str | None = None
    noise_prob: float = 0.5
    noise_snr_db: tuple[float, float] = (5.0, 20.0)
    gain_db: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise InputError(f"data.augmentation.speeds must be factors from 0.5 to 2, found {list(self.speeds)}.")
        if not 0 <= self.noise_prob <= 1:
            raise InputError(f"data.augmentation.noise_prob must be from 0 to 1, found {self.noise_prob}.")
        for name in ("noise_snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not low <= high:
                raise InputError(f"data.augmentation.{name} must be two numbers in rising order, found {low}, {high}.")

    @property
    def longest_stretch(self) -> float:
        """Largest factor by which augmentation lengthens an utterance."""
        return 1 / min(self.speeds)


class Augmenter:
    """Application of an `Augmentation`; the noise files are listed once, at construction."""

    def __init__(self, augmentation: Augmentation, sample_rate: int = SAMPLE_RATE) -> None:
        self.options = augmentation
        self.sample_rate = sample_rate  # Hz
        self.noises = list_noises(augmentation.noise_folder) if augmentation.noise_folder else []

    def __call__(self, waveform_T: np.ndarray, min_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Augment `waveform_T` (at `sample_rate`, float32); at least `min_samples` samples remain if it had as many."""
        options = self.options
        # All draws are made first, whatever is enabled, so that disabling one does not change the others.
        speed = options.speeds[int(rng.integers(len(options.speeds)))]
        gain_db = rng.uniform(*options.gain_db)
        snr_db, is_noisy = rng.uniform(*options.noise_snr_db), rng.random() < options.noise_prob
        if speed != 1 and len(waveform_T) / speed >= min_samples:
            waveform_T = change_speed(waveform_T, speed, self.sample_rate)
        if self.noises and is_noisy:
            waveform_T = add_noise(waveform_T, self._draw_noise(len(waveform_T), rng), snr_db)
        if gain_db:
            waveform_T = np.clip(waveform_T * np.float32(10 ** (gain_db / 20)), -1, 1)
        return waveform_T

    def _draw_noise(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return `num_samples` samples from a random place of a random noise file, repeated if it is too short."""
        path, file_s = self.noises[rng.integers(len(self.noises))]
        wanted_s = num_samples / self.sample_rate
        start_s = rng.uniform(0, max(0.0, file_s - wanted_s))
        ref = AudioRef(path, start_s=start_s, duration_s=min(wanted_s, file_s - start_s))
        return np.resize(read_audio(ref, self.sample_rate), num_samples)


def list_noises(folder: str) -> list[tuple[str, float]]:
    """List (path, seconds) of each audio file below `folder`, in a fixed order.

    Raises:
        InputError: there is no audio file, or one cannot be read.
    """
    paths = sorted(
        Path(directory, name)
        for directory, _, names in os.walk(Path(folder).expanduser(), followlinks=True)
        for name in names
        if name.lower().endswith(AUDIO_SUFFIXES)
    )
    if not paths:
        raise InputError(f"data.augmentation.noise_folder: {folder} holds no audio file ({', '.join(AUDIO_SUFFIXES)}).")
    return [(str(path), _duration_s(path)) for path in paths]


def _duration_s(path: Path) -> float:
    try:
        with opened(path, str(path)) as sound:
            duration_s = sound.frames / sound.samplerate
    except InputError as error:
        raise InputError(f"data.augmentation.noise_folder: {path} cannot be read as audio: {error}") from None
    if duration_s == 0:
        raise InputError(f"data.augmentation.noise_folder: {path} contains no audio.")
    return duration_s


def change_speed(waveform_T: np.ndarray, factor: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Change tempo and pitch by `factor`; the result has about len(waveform_T) / factor samples."""
    from torchaudio.functional import speed  # slow to import, and off by default

    return speed(torch.from_numpy(waveform_T), sample_rate, factor)[0].numpy()


def add_noise(speech_T: np.ndarray, noise_T: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise of the same length, scaled to a signal-to-noise ratio of `snr_db` dB; silent noise adds nothing."""
    speech_power, noise_power = float(np.square(speech_T).mean()), float(np.square(noise_T).mean())
    if noise_power == 0:
        return speech_T
    scale = np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
    return speech_T + np.float32(scale) * noise_T
