"""Durations that a manifest states, against those of the audio: batches are planned from the former."""

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest, check_files
from w2v_lightning.data.opening import opened
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError

log = logging.getLogger(__name__)

# Difference between a manifest's duration and the decoded one that is accepted: durations rounded to 0.1 s are off by
# 0.05 s, and decoders of MP3 disagree by up to two of its frames, 0.07 s, about the padding at both ends. No word is as
# short as that.
TOLERANCE_S = 0.1
ROUNDING_S = 1.0  # durations in whole seconds differ by less, however they were rounded
NUM_PROBES = 8


class DurationError(InputError):
    """A file has another duration than its manifest says."""


def check_duration(ref: AudioRef, actual_s: float) -> None:
    """Raise DurationError if a file has another duration than its manifest says; segments are cut to theirs."""
    if ref.start_s is None and abs(actual_s - ref.duration_s) > _tolerance_s(ref):
        raise DurationError(
            f"{ref}: {actual_s:.3f} s of audio, but its manifest says {ref.duration_s:.3f} s. Batches are planned from"
            " these durations, so make the manifest again with `prepare`."
        )


def load_manifest(path: str | Path) -> Manifest:
    """Return a manifest whose local files exist; durations that are all rounded to whole seconds are read from them.

    Raises:
        InputError: the manifest is invalid, or files are missing or too short.
    """
    manifest = Manifest.load(path)
    check_files(manifest, path)
    return _without_rounding(manifest, path)


def _without_rounding(manifest: Manifest, path: str | Path) -> Manifest:
    stated_s_N = manifest.durations_s_N
    is_file_N = np.isnan(manifest.starts_s_N)
    if not is_file_N.any() or (stated_s_N[is_file_N] % 1).any():
        return manifest
    files = [i for i in np.flatnonzero(is_file_N).tolist() if not is_remote(manifest.audio_paths[i])]
    probes = files[:: max(1, len(files) // NUM_PROBES)]
    if not any(_is_rounded(manifest.audio(i), actual_s) for i, actual_s in _measured(manifest, probes)):
        return manifest  # such as recordings that were cut to whole seconds
    log.warning(
        "%s: its durations are whole seconds, and those of the audio are not: they are read from the %d files, at each"
        " start. `prepare` writes a manifest with exact ones.",
        path,
        len(files),
    )
    actual_s_N = stated_s_N.copy()
    for i, actual_s in _measured(manifest, files):
        if abs(actual_s - stated_s_N[i]) < ROUNDING_S:  # a larger difference is refused where the audio is decoded
            actual_s_N[i] = actual_s
    return replace(manifest, durations_s_N=actual_s_N)


def _is_rounded(ref: AudioRef, actual_s: float) -> bool:
    return _tolerance_s(ref) < abs(actual_s - ref.duration_s) < ROUNDING_S


def _tolerance_s(ref: AudioRef) -> float:
    return TOLERANCE_S + 0.001 * ref.duration_s


def _measured(manifest: Manifest, positions: Sequence[int]) -> list[tuple[int, float]]:
    with ThreadPoolExecutor() as pool:  # file access and libsndfile release the interpreter lock
        durations_s = pool.map(lambda i: _duration_s(manifest.audio(i)), positions)
        return [(i, seconds) for i, seconds in zip(positions, durations_s, strict=True) if seconds]


def _duration_s(ref: AudioRef) -> float:
    """Return the duration of a local file, or of a file within it; 0 if it cannot be read."""
    try:
        path = ref.url.removeprefix("file://")
        with opened(_bytes_of(path, ref) if ref.num_bytes else path, str(ref)) as sound:
            return float(sound.frames / sound.samplerate)
    except (InputError, OSError):
        return 0.0


def _bytes_of(path: str, ref: AudioRef) -> io.BytesIO:
    with open(path, "rb") as file:
        file.seek(ref.byte_offset)
        return io.BytesIO(file.read(ref.num_bytes))
