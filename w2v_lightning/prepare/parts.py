"""Parts of the output: up to 2,000 lines of the manifest, or one shard with its lines.

A part gets its final name once it is complete, so a run can be interrupted at any time and knows what was done.

    DIR/.parts/[SPLIT-]000000.part     one line of statistics and details, then lines of the manifest
    DIR/shards/[SPLIT-]000000.tar
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.convert import Audio
from w2v_lightning.prepare.hashes import HashSet
from w2v_lightning.prepare.shards import END_BYTES, Shard, member_name
from w2v_lightning.prepare.statistics import Statistics
from w2v_lightning.prepare.utterance import Utterance

MAX_LINES = 2_000


class Parts:
    """Parts of one output folder: the complete ones of an earlier run, and those that `add` begins.

    Args:
        out: the output folder.
        shard_size: size of a shard in bytes; None: no shards.
        on_shard: called with the path of each complete shard, those of an earlier run first.
        has_details: whether the first line of a part also holds the recording, bytes and sample rate of its utterances.
    """

    def __init__(
        self, out: Path, shard_size: int | None, on_shard: Callable[[Path], None], has_details: bool = False
    ) -> None:
        self._folder = out / ".parts"
        self._shards = out / "shards"
        self._shard_size = shard_size
        self._on_shard = on_shard
        self._has_details = has_details
        self._open: dict[str, _Part] = {}
        self._number: Counter[str] = Counter()
        self.done = HashSet()
        self._resume()

    def add(self, utterance: Utterance, audio: Audio, audio_filepath: str) -> None:
        """Append an utterance to the part of its split; `audio_filepath` locates its audio without shards."""
        part = self._open.get(utterance.split)
        if part and self._is_full(part, audio):
            self._complete(part)
            part = None
        part = part or self._begin(utterance.split)
        part.add(utterance, audio, audio_filepath)

    def finish(self) -> None:
        """Complete the parts that are open."""
        for split in sorted(self._open):
            self._complete(self._open[split])

    def _is_full(self, part: "_Part", audio: Audio) -> bool:
        """Return whether the audio does not fit; header blocks and a transcript may exceed a shard's size."""
        if part.shard and self._shard_size:
            return part.shard.size + audio.num_bytes + END_BYTES > self._shard_size
        return len(part.lines) >= MAX_LINES

    def _begin(self, split: str) -> "_Part":
        name = f"{split}-{self._number[split]:06}" if split else f"{self._number[split]:06}"
        shard = Shard(self._folder / f"{name}.tar") if self._shard_size else None
        self._open[split] = _Part(name, split, shard, self._has_details)
        return self._open[split]

    def _complete(self, part: "_Part") -> None:
        final_path = None
        if part.shard:
            part.shard.close()
            self._shards.mkdir(exist_ok=True)
            final_path = self._shards / part.shard.path.name
            os.replace(part.shard.path, final_path)
        write_part(self._folder / f"{part.name}.part", part.header(), part.lines)
        del self._open[part.split]
        self._number[part.split] += 1
        if final_path:
            self._on_shard(final_path)

    def _resume(self) -> None:
        for path, header in read_headers(self._folder):
            self._number[header["split"]] += 1
            for line in lines_of(path):
                self.done.add(json.loads(line)["id"])
            if self._shard_size:
                self._on_shard(self._shards / f"{path.stem}.tar")


class _Part:
    """Part that is being written."""

    def __init__(self, name: str, split: str, shard: Shard | None, has_details: bool) -> None:
        self.name = name
        self.split = split
        self.shard = shard
        self.lines: list[str] = []
        self._statistics = Statistics()
        self._details: list[list[str | int]] | None = [] if has_details else None

    def add(self, utterance: Utterance, audio: Audio, audio_filepath: str) -> None:
        row: dict[str, Any] = {"id": utterance.id, "audio_filepath": audio_filepath, "duration": audio.duration_s}
        row |= {"text": utterance.text, "speaker": utterance.speaker}
        if self.split:
            row["split"] = self.split
        if not audio.is_converted and isinstance(utterance.audio, AudioRef) and utterance.audio.channel is not None:
            row["channel"] = utterance.audio.channel
        self.lines.append(json.dumps(row | self._position(utterance, audio), ensure_ascii=False))
        self._statistics.add(utterance.text, utterance.speaker, audio)
        if self._details is not None:
            self._details.append([_recording(utterance), audio.num_bytes, audio.sample_rate])

    def header(self) -> dict[str, Any]:
        details = {} if self._details is None else {"details": self._details}
        return {"split": self.split, "statistics": self._statistics.as_json()} | details

    def _position(self, utterance: Utterance, audio: Audio) -> dict[str, Any]:
        """Return the keys that locate the audio within its file, after adding it to the shard if there is one."""
        if self.shard:
            assert audio.data is not None, "prepare_audio returns the bytes if there are shards"
            name = member_name(utterance.id)
            offset = self.shard.add(name + audio.suffix, audio.data)
            self.shard.add(f"{name}.txt", utterance.text.encode())
            return {
                "audio_filepath": f"shards/{self.shard.path.name}",
                "byte_offset": offset,
                "num_bytes": len(audio.data),
            }
        if audio.is_converted:
            return {}
        assert isinstance(utterance.audio, AudioRef), "packed audio goes to shards"
        return _position_in_file(utterance.audio)


def _position_in_file(ref: AudioRef) -> dict[str, Any]:
    packed: dict[str, Any] = {"byte_offset": ref.byte_offset, "num_bytes": ref.num_bytes} if ref.num_bytes else {}
    return packed if ref.start_s is None else packed | {"offset": ref.start_s}


def _recording(utterance: Utterance) -> str:
    """Return a name of the recording that an utterance is, or is a segment of."""
    audio = utterance.audio
    return f"{audio.url}:{audio.byte_offset}" if isinstance(audio, AudioRef) else utterance.id


def write_part(path: Path, header: dict[str, Any], lines: Iterable[str]) -> None:
    """Write a part, which `path` has once it is complete."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in chain([json.dumps(header, ensure_ascii=False)], lines))
    os.replace(temporary, path)


def read_headers(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield path and first line of each complete part, in the manifest's order."""
    for path in sorted(folder.glob("*.part")):
        with path.open(encoding="utf-8") as file:
            yield path, json.loads(file.readline())


def lines_of(path: Path) -> Iterator[str]:
    """Yield the manifest's lines in a part, with their line ends."""
    with path.open(encoding="utf-8") as file:
        file.readline()
        yield from file
