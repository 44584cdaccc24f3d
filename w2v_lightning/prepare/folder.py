"""Folder of audio files with transcripts beside them: LibriSpeech, one split of it, or any other."""

import os
from collections.abc import Iterator
from pathlib import Path

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.pairing import TRANSCRIPT_SUFFIXES, Pairing
from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES, Item


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each directory with the names of its files, all sorted; one directory in memory at a time.

    Raises:
        OSError: a directory cannot be listed; plain os.walk would skip it silently.
    """
    for directory, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        folders.sort()
        yield Path(directory), sorted(names)


def read_folder(root: Path) -> Iterator[Item]:
    """Yield the utterances of all directories below `root`."""
    root = root.resolve()
    for directory, names in walk(root):
        pairing = Pairing(directory.relative_to(root.parent), str(directory), HashSet())
        stems = {Path(name).stem for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}
        for name in sorted(names, key=lambda name: not name.lower().endswith(".txt")):
            # Other files, such as config.json, are not transcripts, and may be large.
            is_beside_audio = name.lower().endswith(TRANSCRIPT_SUFFIXES) and Path(name).stem in stems
            if name.lower().endswith(".txt") or is_beside_audio:
                yield from pairing.add_transcripts(name, (directory / name).read_bytes())
        for name in names:
            if Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield from pairing.add_audio(Path(name).stem, AudioRef(str(directory / name)))
        yield from pairing.unmatched()


def _raise(error: OSError) -> None:
    raise error
