"""What there is to transcribe: audio files, folders of them and manifests, as one manifest."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile

from w2v_lightning.data import flac
from w2v_lightning.data.manifest import MANIFEST_SUFFIXES, Manifest, check_files
from w2v_lightning.data.sound import cut_off
from w2v_lightning.errors import InputError
from w2v_lightning.prepare.folder import walk
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES

UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's word for it


def recordings(sources: Sequence[str | Path], skip: Callable[[InputError], None] | None = None) -> Manifest:
    """The utterances of all sources, in order; their durations by the manifests or by the headers of the files.

    The id of a file that no manifest names is its path; its text is empty.

    Args:
        sources: audio files of any kind that libsndfile reads; folders, below which all such files count, sorted;
            manifests (.jsonl, .jsonl.gz, .json), also URLs of them.
        skip: is told what is wrong with a file, which is then left out; by default that is raised.

    Raises:
        InputError: a folder holds no audio, a file cannot be read, or a manifest is wrong.
    """
    parts = []
    for is_manifest, group in groupby(map(str, sources), key=lambda source: source.endswith(MANIFEST_SUFFIXES)):
        if is_manifest:
            parts += [_checked(source) for source in group]
        else:
            parts.append(_measured([path for source in group for path in _audio_files(source)], skip or _raise))
    return Manifest.join(parts)


def _checked(path: str) -> Manifest:
    manifest = Manifest.load(path)
    check_files(manifest, path)
    return manifest


def _audio_files(source: str) -> list[str]:
    if not os.path.isdir(source):
        return [source]
    try:
        names = [str(folder / name) for folder, names in walk(Path(source)) for name in names]
    except OSError as error:
        raise InputError(f"{error.filename}: the folder cannot be listed: {error.strerror}.") from None
    found = [name for name in names if name.lower().endswith(AUDIO_SUFFIXES)]
    if not found:
        raise InputError(f"{source} holds no audio file ({', '.join(AUDIO_SUFFIXES)}); give a folder that does.")
    return found


def _measured(paths: list[str], skip: Callable[[InputError], None]) -> Manifest:
    with ThreadPoolExecutor() as pool:  # the system and libsndfile work outside the interpreter lock
        measured = list(zip(paths, pool.map(_duration_or_error, paths), strict=True))
    for _, found in measured:
        if isinstance(found, InputError):
            skip(found)
    duration_s_of = [(path, found) for path, found in measured if not isinstance(found, InputError)]
    readable = [path for path, _ in duration_s_of]
    nothing = [""] * len(readable)
    durations_s_N = np.array([duration_s for _, duration_s in duration_s_of], dtype=np.float64)
    return Manifest(readable, readable, durations_s_N, texts=nothing, speakers=nothing)


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
        if info is not None and info.num_samples and info.sample_rate:  # a tenth of libsndfile's time
            return info.num_samples / info.sample_rate
        with soundfile.SoundFile(path) as sound:
            num_frames, sample_rate = sound.frames, sound.samplerate
            shortage = cut_off(sound, path, may_be_unclosed=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None
    except soundfile.SoundFileError as error:
        raise InputError(f"{path}: cannot be read as audio: {error}") from None
    if shortage:
        raise InputError(f"{path}: cut off: {shortage}. Fetch it anew, or write what is there to a new file.")
    if not num_frames:
        raise InputError(f"{path}: there is no audio in it.")
    if num_frames == UNKNOWN_LENGTH:
        raise InputError(f"{path}: its header does not say how long it is; encode it once more, to a file, not a pipe.")
    return num_frames / sample_rate
