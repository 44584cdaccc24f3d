"""Preparation of all utterances of the sources: in order, on all cores, with few utterances in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decoded import DecodedFiles
from w2v_lightning.prepare.channels import by_channel
from w2v_lightning.prepare.convert import Audio, UnusableAudioError, prepare_audio
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.identity import unique
from w2v_lightning.prepare.options import Recipe
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.prepare.shards import member_name
from w2v_lightning.prepare.sources import Source
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

AHEAD_PER_WORKER = 4
MAX_KEPT = 2  # decoded recordings: threads may be at the end of one and at the beginning of the next

Input = TypeVar("Input")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Prepared:
    """Utterance that is ready to be written."""

    utterance: Utterance
    audio: Audio
    audio_filepath: str  # path of its audio; empty if it goes to a shard


def outcomes(
    sources: Sequence[Source], out: Path, recipe: Recipe, workers: int, done: HashSet, progress: Progress
) -> Iterator[Prepared | Rejected]:
    """Yield every utterance that is not `done`, in the order of the sources."""
    items = _pending(unique(by_channel(chain.from_iterable(sources), recipe.channel)), done, progress)
    prepare = partial(_prepare, out=out, recipe=recipe, kept=DecodedFiles(MAX_KEPT))
    pool = ThreadPoolExecutor(workers)  # threads are enough: libsndfile and file reads release the interpreter lock
    try:
        yield from in_order(pool, prepare, items, AHEAD_PER_WORKER * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Input], Output], items: Iterable[Input], ahead: int
) -> Iterator[Output]:
    """Yield `work(item)` of each item in order, with at most `ahead` of them under way.

    The executor's own `map` would read all items at once.
    """
    pending: deque[Future[Output]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _pending(items: Iterable[Item], done: HashSet, progress: Progress) -> Iterator[Item]:
    """Yield the items that no earlier run has done."""
    for item in items:
        if isinstance(item, Utterance):
            progress.advance(_num_bytes(item.audio))
        if isinstance(item, Rejected) or item.id not in done:
            yield item


def _prepare(item: Item, out: Path, recipe: Recipe, kept: DecodedFiles) -> Prepared | Rejected:
    if isinstance(item, Rejected):
        return item
    try:
        _check_text(item)
        audio = prepare_audio(item.audio, recipe, item.packed_channel, kept)
    except UnusableAudioError as error:
        where = "" if isinstance(item.audio, bytes) else f"{item.audio}: "
        return Rejected(item.source, item.id, str(error), error.detail and f"{where}{error.detail}")
    if recipe.shard_size:
        return Prepared(item, audio, "")
    if audio.data is not None:  # without shards, prepare_audio returns the bytes of converted audio only
        return Prepared(item, audio, _write(audio.data, member_name(item.id) + audio.suffix, out))
    assert isinstance(item.audio, AudioRef), "packed audio goes to shards"
    return Prepared(item, audio, _relative(os.path.abspath(item.audio.url), out))


def _check_text(utterance: Utterance) -> None:
    if not utterance.text.strip():
        raise UnusableAudioError("an empty transcript")
    url = utterance.audio.url if isinstance(utterance.audio, AudioRef) else ""
    try:
        f"{utterance.id}{utterance.speaker}{utterance.text}{url}".encode()
    except UnicodeEncodeError:
        raise UnusableAudioError("a name or transcript that is not UTF-8 text") from None


def _write(data: bytes, name: str, out: Path) -> str:
    temporary = out / ".parts" / f"{name}.tmp"
    temporary.write_bytes(data)
    folder = out / "audio"
    folder.mkdir(exist_ok=True)
    temporary.replace(folder / name)
    return f"audio/{name}"


def _relative(path: str, out: Path) -> str:
    return path.removeprefix(f"{out}{os.sep}")


def _num_bytes(audio: AudioRef | bytes) -> int:
    """Return the size of a source's audio; 0 for segments, whose size is not known, and for missing files."""
    if isinstance(audio, bytes):
        return len(audio)
    try:
        return audio.num_bytes or (os.path.getsize(audio.url) if audio.start_s is None else 0)
    except OSError:
        return 0
