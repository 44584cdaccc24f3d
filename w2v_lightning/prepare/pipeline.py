"""From sources to utterances that are ready to be written: in order, over all cores, with little in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.convert import Audio, UnusableAudioError, prepare_audio
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.options import Options
from w2v_lightning.prepare.progress import Progress
from w2v_lightning.prepare.shards import member_name
from w2v_lightning.prepare.sources import Source
from w2v_lightning.prepare.utterance import Item, Rejected, Utterance

AHEAD_PER_WORKER = 4

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Prepared:
    """An utterance that is ready to be written."""

    utterance: Utterance
    audio: Audio
    audio_filepath: str  # where its audio lies without shards


def outcomes(
    sources: Sequence[Source], out: Path, options: Options, workers: int, done: HashSet, progress: Progress
) -> Iterator[Prepared | Rejected]:
    """Every utterance that is not `done`, in the order of the sources."""
    items = _admitted(chain.from_iterable(sources), done, progress)
    pool = ThreadPoolExecutor(workers)  # libsndfile and the reading of files work outside the interpreter lock
    try:
        yield from in_order(pool, partial(_prepare, out=out, options=options), items, AHEAD_PER_WORKER * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Given], Made], items: Iterable[Given], ahead: int
) -> Iterator[Made]:
    """`work` of each item in order, with at most `ahead` under way; the executor's own map would take up all items."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _admitted(items: Iterable[Item], done: HashSet, progress: Progress) -> Iterator[Item]:
    """Without those that an earlier run has done; an id comes once."""
    seen = HashSet()
    for item in items:
        if isinstance(item, Rejected):
            yield item
            continue
        progress.advance(_num_bytes(item.audio))
        if item.id in seen:
            yield Rejected(item.source, item.id, "an id that occurred before")
            continue
        seen.add(item.id)
        if item.id not in done:
            yield item


def _prepare(item: Item, out: Path, options: Options) -> Prepared | Rejected:
    if isinstance(item, Rejected):
        return item
    try:
        _check_text(item)
        audio = prepare_audio(item.audio, options)
    except UnusableAudioError as error:
        where = "" if isinstance(item.audio, bytes) else f"{item.audio}: "
        return Rejected(item.source, item.id, str(error), error.detail and f"{where}{error.detail}")
    if options.shard_size:
        return Prepared(item, audio, "")
    if audio.is_converted:
        return Prepared(item, audio, _write(audio.data, member_name(item.id) + audio.suffix, out))
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
    """Of a source's audio; a segment's are not known."""
    if isinstance(audio, bytes):
        return len(audio)
    try:
        return audio.num_bytes or (os.path.getsize(audio.url) if audio.start_s is None else 0)
    except OSError:
        return 0
