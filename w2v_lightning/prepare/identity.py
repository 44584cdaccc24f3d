"""Identity of utterances: an id that repeats is made unique, and only the same audio under the same id is a duplicate.

Ids often come from what is unique only within a split or a folder: file names, sentence numbers. Such recordings would
be lost if the id alone decided.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import PurePath

from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

DUPLICATE = "the same id and audio as before"


def unique(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items with unique ids, and duplicates as rejected.

    The first utterance of an id keeps it; the next ones get their split, their source or a number in front or behind.
    The result depends only on the items and their order, so an interrupted run finds the same ids again.
    """
    ids, places = HashSet(), HashSet()
    numbers: Counter[str] = Counter()  # the last number behind an id; without it, n repeats would take n² steps
    for item in items:
        if isinstance(item, Rejected):
            yield item
            continue
        place = f"{item.id}\0{_place(item)}"
        if place in places:
            yield Rejected(item.source, item.id, DUPLICATE)
            continue
        places.add(place)
        new_id = item.id if item.id not in ids else next(new for new in _alternatives(item, numbers) if new not in ids)
        ids.add(new_id)
        yield item if new_id == item.id else replace(item, id=new_id)


def _place(utterance: Utterance) -> str:
    """Return what tells this audio from all other audio: its place, or a digest of its bytes."""
    audio = utterance.audio
    if isinstance(audio, bytes):
        return hashlib.blake2b(audio, digest_size=16).hexdigest()
    segment = None if audio.start_s is None else (audio.start_s, audio.duration_s)
    return repr((os.path.normpath(audio.url), audio.byte_offset, segment, audio.channel))


def _alternatives(utterance: Utterance, numbers: Counter[str]) -> Iterator[str]:
    """Yield ids that may be unique, the most telling first."""
    if utterance.split:
        yield f"{utterance.split}-{utterance.id}"
    source = PurePath(utterance.source)
    yield "-".join(filter(None, (source.parent.name, source.stem, utterance.id)))
    while True:
        numbers[utterance.id] = max(numbers[utterance.id], 1) + 1
        yield f"{utterance.id}-{numbers[utterance.id]}"
