"""Inputs of `transcribe`: audio files, folders and manifests, joined into one manifest."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np

from w2v_lightning.data import flac
from w2v_lightning.data.durations import load_manifest
from w2v_lightning.data.manifest import MANIFEST_SUFFIXES, Manifest
from w2v_lightning.data.opening import opened
from w2v_lightning.data.sound import truncation
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".tar", ".tar.gz", ".tgz")


def load_inputs(sources: Sequence[str | Path], skip: Callable[[InputError], None] | None = None) -> Manifest:
    """Return the utterances of all sources, in order, with durations from manifests or file headers.

    A file outside of a manifest gets its path as id, and an empty text.

    Args:
        sources: audio files of any kind that libsndfile reads; folders, which are searched recursively for such files
            (sorted); manifests (.jsonl, .jsonl.gz, .json) or their URLs.
        skip: called with the error of each unreadable file, which is then left out; default: raise the error.

    Raises:
        InputError: a folder has no audio files, a file cannot be read, or a manifest is invalid.
    """
    parts = []
    for is_manifest, group in groupby(map(str, sources), key=lambda source: source.endswith(MANIFEST_SUFFIXES)):
        if is_manifest:
            parts += [load_manifest(source) for source in group]
        else:
            parts.append(_manifest_of([path for source in group for path in _audio_files(source)], skip or _raise))
    return Manifest.join(parts)


def _audio_files(source: str) -> list[str]:
    if not os.path.isdir(source):
        if source.lower().endswith(TABLE_SUFFIXES):
            raise InputError(
                f"{source}: is a table or an archive, not audio: make a manifest of it (prepare), or give audio files."
            )
        return [source]
    try:
        names = [str(folder / name) for folder, names in walk(Path(source)) for name in names]
    except OSError as error:
        raise InputError(f"{error.filename}: the folder cannot be listed: {error.strerror}.") from None
    audio_files = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
    if not audio_files:
        raise InputError(f"{source}: no audio files found ({', '.join(AUDIO_SUFFIXES)}); give a folder that has some.")
    return audio_files


def _manifest_of(paths: list[str], skip: Callable[[InputError], None]) -> Manifest:
    with ThreadPoolExecutor() as pool:  # file access and libsndfile release the interpreter lock
        outcomes = list(zip(paths, pool.map(_duration_or_error, paths), strict=True))
    for _, outcome in outcomes:
        if isinstance(outcome, InputError):
            skip(outcome)
    duration_s_of_path = [(path, outcome) for path, outcome in outcomes if not isinstance(outcome, InputError)]
    readable = [path for path, _ in duration_s_of_path]
    empty = [""] * len(readable)
    durations_s_N = np.array([duration_s for _, duration_s in duration_s_of_path], dtype=np.float64)
    return Manifest(readable, readable, durations_s_N, texts=empty, speakers=empty)


def _raise(error: InputError) -> None:
    raise error


def _duration_or_error(path: str) -> float | InputError:
    try:
        return _duration_s(path)
    except InputError as error:
        return error


def _duration_s(path: str) -> float:
    try:
        with open(path, "rb") as file:
            info = flac.stream_info(file.read(flac.HEADER_BYTES))
        if info is not None and info.num_samples and info.sample_rate:  # takes a tenth of libsndfile's time
            return info.num_samples / info.sample_rate
        with opened(path, path) as sound:
            num_frames, sample_rate = sound.frames, sound.samplerate
            shortage = truncation(sound, path, may_be_unclosed=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None
    if shortage:
        raise InputError(f"{path}: truncated: {shortage}. Download it again, or save the existing part as a new file.")
    if not num_frames:
        raise InputError(f"{path}: contains no audio.")
    return num_frames / sample_rate
