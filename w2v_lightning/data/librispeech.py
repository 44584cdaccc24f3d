"""Discovery of the utterances of a corpus in the official LibriSpeech layout.

ROOT/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac
ROOT/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt     one line per utterance: ID TRANSCRIPT
"""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from w2v_lightning.data.manifest import MANIFEST_SUFFIXES, Manifest
from w2v_lightning.data.opening import opened
from w2v_lightning.data.sound import can_read, truncation
from w2v_lightning.errors import InputError, listed
from w2v_lightning.runtime.user_cache import cache_root

log = logging.getLogger(__name__)

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg")


@dataclass(frozen=True)
class SplitFiles:
    """Audio files and transcripts of one split, before any audio is opened."""

    audio_of_id: dict[str, Path]
    text_of_id: dict[str, str]

    def unpaired_ids(self) -> tuple[list[str], list[str]]:
        """Return the ids of audio files without a transcript, and of transcripts without audio."""
        audio, texts = self.audio_of_id.keys(), self.text_of_id.keys()
        return sorted(audio - texts), sorted(texts - audio)


def load_split(root: Path, split: str, *, strict: bool = False, skip_unusable: bool = False) -> Manifest:
    """Return the manifest of ROOT/SPLIT, from the cache if the folder has not changed since it was built.

    Args:
        root: folder of the splits.
        split: name of the split, such as ``train-clean-100``.
        strict: raise an error if audio has no transcript or a transcript no audio; otherwise these are left out with a
            warning that counts and lists them.
        skip_unusable: leave out empty and undecodable audio files with a warning instead of raising an error.

    Raises:
        InputError: root or split is missing, or has no utterance, or has files that `strict` or `skip_unusable` forbid.
    """
    folder = _split_folder(root, split)
    path = cache_root() / "manifests" / f"{split.replace(os.sep, '_')}-{_fingerprint(folder)}.jsonl"
    # Only splits without problems are cached, so that a warning or an error is repeated at every start.
    if os.path.exists(path):  # unlike Path.exists, this is False and does not raise if the folder may not be read
        return Manifest.load(path)
    files = _list_files(folder)
    unpaired = _report_unpaired(files, folder, strict)
    manifest, unreadable = _measure(files, folder)
    _report_unreadable(unreadable, folder, skip_unusable)
    if len(manifest) == 0:
        raise InputError(f"{folder}: no utterance has both readable audio and a transcript.")
    if not unpaired and not unreadable:
        _save_to_cache(manifest, path)
    return manifest


def _split_folder(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise InputError(f"data.root: folder {root} not found. Give the folder of the splits.")
    folder = root / split
    if not folder.is_dir():
        names = sorted(e.name for e in root.iterdir() if e.is_dir() or e.name.endswith(MANIFEST_SUFFIXES))
        raise InputError(
            f"data.root: {root} has no split {split!r}, neither as a folder nor as {split}.jsonl; it holds"
            f" {', '.join(names) or 'neither folders nor manifests'}."
        )
    return folder.resolve()


def _fingerprint(folder: Path) -> str:
    """Return a digest that changes if a file below `folder` is added, removed or renamed, or a transcript is edited."""
    digest = hashlib.sha256(str(folder).encode())
    for directory, _, names in sorted(os.walk(folder, followlinks=True)):
        digest.update(f"{directory} {os.stat(directory).st_mtime_ns}".encode())
        for name in sorted(name for name in names if name.endswith(".trans.txt")):
            stat = os.stat(os.path.join(directory, name))
            digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _list_files(folder: Path) -> SplitFiles:
    audio_of_id: dict[str, Path] = {}
    text_of_id: dict[str, str] = {}
    for directory, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            path = Path(directory, name)
            if name.endswith(".trans.txt"):
                _read_transcripts(path, text_of_id)
            elif path.suffix.lower() in AUDIO_SUFFIXES:
                if path.stem in audio_of_id:
                    raise InputError(f"Two audio files for utterance {path.stem}: {audio_of_id[path.stem]} and {path}.")
                audio_of_id[path.stem] = path
    if not audio_of_id:
        raise InputError(f"{folder} holds no audio file ({', '.join(AUDIO_SUFFIXES)}); is it a LibriSpeech split?")
    return SplitFiles(audio_of_id, text_of_id)


def _read_transcripts(path: Path, text_of_id: dict[str, str]) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from None
    for number, line in enumerate(lines, 1):
        utterance_id, _, text = line.strip().partition(" ")
        if utterance_id in text_of_id:
            raise InputError(f"{path}:{number}: a second transcript for utterance {utterance_id}.")
        if utterance_id:
            text_of_id[utterance_id] = text.strip()


def _report_unpaired(files: SplitFiles, folder: Path, strict: bool) -> bool:
    findings = zip(("without a transcript", "whose audio file is missing"), files.unpaired_ids(), strict=True)
    messages = [f"{len(ids)} utterances {problem}: {listed(ids)}" for problem, ids in findings if ids]
    if not messages:
        return False
    message = f"{folder}: " + "; ".join(messages)
    if strict:
        raise InputError(f"{message}. Repair the corpus, or set data.strict=false to train without them.")
    log.warning("%s. They are left out (data.strict=true refuses them).", message)
    return True


def _measure(files: SplitFiles, folder: Path) -> tuple[Manifest, dict[str, str]]:
    """Return the manifest of the readable utterances, and the reason for each unreadable file."""
    ids = sorted(files.audio_of_id.keys() & files.text_of_id.keys())
    paths = [files.audio_of_id[utterance_id] for utterance_id in ids]
    with ThreadPoolExecutor() as pool:  # libsndfile releases the interpreter lock
        durations_or_reasons = list(pool.map(_duration_s_or_reason, paths))
    unreadable = {str(p): d for p, d in zip(paths, durations_or_reasons, strict=True) if isinstance(d, str)}
    readable = [i for i, d in enumerate(durations_or_reasons) if not isinstance(d, str)]
    manifest = Manifest(
        ids=[ids[i] for i in readable],
        audio_paths=[str(paths[i]) for i in readable],
        durations_s_N=np.array([durations_or_reasons[i] for i in readable], dtype=np.float64),
        texts=[files.text_of_id[ids[i]] for i in readable],
        speakers=[paths[i].relative_to(folder).parts[0] for i in readable],
    )
    return manifest, unreadable


def _duration_s_or_reason(path: Path) -> float | str:
    """Return the seconds of audio, or the reason why the file is unreadable."""
    try:
        with opened(path, str(path)) as file:
            if shortage := truncation(file, path):
                return f"truncated: {shortage}"
            if file.frames == 0:
                return "contains no audio"
            return file.frames / file.samplerate if can_read(file, file.frames - 1) else "truncated or damaged"
    except InputError as error:
        return str(error).removeprefix(f"{path}: ").removeprefix("cannot be read as audio: ")


def _report_unreadable(reasons: dict[str, str], folder: Path, skip: bool) -> None:
    if not reasons:
        return
    examples = listed([f"{path} ({reason})" for path, reason in reasons.items()])
    message = f"{folder}: {len(reasons)} audio files cannot be used: {examples}"
    if not skip:
        raise InputError(f"{message}. Replace or remove them, or set data.skip_unusable=true to train without them.")
    log.warning("%s. They are left out (data.skip_unusable=true).", message)


def _save_to_cache(manifest: Manifest, path: Path) -> None:
    try:
        manifest.save(path)
    except OSError as error:  # a read-only home must not stop a run: the next one lists the files again
        log.warning("The manifest cannot be cached as %s: %s.", path, error)
