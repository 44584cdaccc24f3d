"""Options of `prepare`, and the recipe that they give."""

import re
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.columns import ColumnNames
from w2v_lightning.runtime.cores import usable_cores

DEFAULT_SHARD_BYTES = 512_000_000
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MAX_VALIDATION = 50  # percent
USABLE_CORES = usable_cores()
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 655_350  # the maximum is FLAC's


@dataclass(frozen=True)
class Recipe:
    """Options that determine the output: the same recipe and the same sources give the same files."""

    shard_size: int | None = None  # bytes; None: no shards
    to: str | None = None
    resample: int | None = None  # Hz
    min_duration: float | None = None  # seconds
    max_duration: float | None = None  # seconds
    segment: bool = False
    channel: str = "mix"  # or a number, 0-based, or "each": one utterance per channel
    validation: float | None = None  # percent of the audio


@dataclass(frozen=True)
class PrepareOptions:
    """Make a manifest, and optionally tar shards, from one or more corpora.

    After an interruption, run the same command again; it resumes where it stopped.

    Supported sources:

    - a LibriSpeech folder, one split of it, or any folder of audio with .txt, .lab, .json or .trans.txt files beside
    it, such as TIMIT

    - a folder of Common Voice, Multilingual LibriSpeech, LJSpeech, or audiofolder (metadata.csv or metadata.jsonl)

    - a Kaldi data directory (wav.scp, text, utt2spk, segments); commands in wav.scp are never executed

    - a .tar, .tar.gz or .tgz archive of a folder of audio, or the shards of a webdataset

    - a NeMo manifest, a lhotse CutSet or SupervisionSet (.json or .jsonl, also .gz)

    - a tarred NeMo manifest (also manifest__OP_0..3_CL_.json), lhotse's Shar folder, fairseq's .tsv with .wrd or .ltr

    - a .csv, .tsv, .json or .jsonl table (also .gz) with a path and a text column; with start and end, or offset and
    duration, in seconds, its rows are segments of recordings

    - a .parquet file or a folder of a Hugging Face dataset (.parquet, or .arrow as save_to_disk writes it)

    Args:
        sources: paths of the corpora, of the kinds listed above.
        out: output folder, for manifest.jsonl, stats.json and the rest.
        shard_size: approximate size of each tar shard, such as 512MB or 1GiB; default: no shards, except for an upload
            and for audio that is packed in archives or datasets (512MB).
        to: URL of the store to upload to, such as s3://bucket/prefix; implies shards.
        resample: sample rate in Hz; audio of another rate or with several channels is converted to it, in mono;
            default: no conversion.
        min_duration: duration in seconds below which utterances are left out; default: no limit.
        max_duration: duration in seconds above which utterances are left out; default: no limit.
        segment: a separate file for each segment of a longer recording, instead of a reference into it.
        channel: channel of stereo and other recordings to use: its number, counted from 0; mix, the mean of all; or
            each, one utterance per channel, whose ids end in -0, -1 and so on.
        validation: share of the audio for a validation split, such as 5%, if the sources have none; whole speakers, or
            whole recordings where no speaker is known; default: no such split.
        max_rejected: share of the utterances that may be left out, such as 5%; above it, the exit status is 1, although
            the output is complete. Duplicates and the limits of duration do not count.
        path_column: name of the column of the audio or its path, in tables and datasets; default: the usual names.
        text_column: name of the column of the transcript, in tables and datasets; default: the usual names.
        speaker_column: name of the column of the speaker, in tables and datasets; default: the usual names.
        workers: number of threads; default: one per CPU core.

    Raises:
        InputError: an option is out of range, options contradict each other, or the URL contains a password.
    """

    sources: list[Path]
    out: Path
    shard_size: str | None = None
    to: str | None = None
    resample: PositiveInt | None = None
    min_duration: NonNegativeFloat | None = None
    max_duration: PositiveFloat | None = None
    segment: bool = False
    channel: str = "mix"
    validation: str | float | None = None
    max_rejected: str | float = "1%"
    path_column: str | None = None
    text_column: str | None = None
    speaker_column: str | None = None
    workers: PositiveInt = USABLE_CORES

    def __post_init__(self) -> None:
        shortest_s, longest_s = self.min_duration, self.max_duration
        if shortest_s is not None and longest_s is not None and shortest_s > longest_s:
            raise InputError(
                f"--min_duration {shortest_s:g} is more than --max_duration {longest_s:g}, which leaves no utterance."
                " Swap them, or drop one."
            )
        if self.resample is not None and not MIN_RATE_HZ <= self.resample <= MAX_RATE_HZ:
            raise InputError(
                f"--resample is {self.resample}: must be a sample rate from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, such as"
                " 16000."
            )
        if not re.fullmatch(r"\d{1,3}|mix|each", self.channel):
            raise InputError(f"--channel is {self.channel!r}: must be mix, each, or a number counted from 0.")
        if self.validation is not None and not 0 < _percentage("validation", self.validation) <= MAX_VALIDATION:
            raise InputError(f"--validation is {self.validation}: must be above 0% and at most {MAX_VALIDATION}%.")
        _percentage("max_rejected", self.max_rejected)
        if self.to and re.match(r"[^/]+://[^/]*@", self.to):
            raise InputError(
                "--to contains a user or password in its URL; pass them in AWS's environment variables or profile."
            )
        if self.to and "://" not in self.to:
            raise InputError(f"--to is {self.to!r}: must be a URL such as s3://bucket/prefix.")
        if self.shard_size is not None:
            _bytes_of(self.shard_size)

    @property
    def columns(self) -> ColumnNames:
        """Columns that the user names."""
        return ColumnNames(self.path_column, self.text_column, self.speaker_column)

    @property
    def max_rejected_percentage(self) -> float:
        """Share of the utterances that may be left out, in percent."""
        return _percentage("max_rejected", self.max_rejected)

    def recipe(self, *, is_packed: bool) -> Recipe:
        """Return the recipe, with shards if an upload or packed audio needs them.

        Args:
            is_packed: a source holds audio that is not in files of its own.
        """
        return Recipe(
            shard_size=self._shard_bytes(is_packed),
            to=self.to and self.to.rstrip("/"),
            resample=self.resample,
            min_duration=self.min_duration,
            max_duration=self.max_duration,
            segment=self.segment,
            channel=self.channel,
            validation=None if self.validation is None else _percentage("validation", self.validation),
        )

    def _shard_bytes(self, is_packed: bool) -> int | None:
        if self.shard_size is not None:
            return _bytes_of(self.shard_size)
        return DEFAULT_SHARD_BYTES if self.to or is_packed else None


def _percentage(option: str, value: str | float) -> float:
    """Return the number in a percentage, which may be written without its sign."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*%?", str(value).strip())
    if match is None or float(match[1]) > 100:
        raise InputError(f"--{option} is {value!r}: must be a percentage such as 5%.")
    return float(match[1])


def _bytes_of(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", size.strip().upper())
    if match:
        unit = match[2] if match[2] in UNITS else f"{match[2]}B"
        num_bytes = int(float(match[1]) * UNITS.get(unit, 0))
        if num_bytes >= 1:
            return num_bytes
    raise InputError(f"--shard_size is {size!r}: must be a size such as 512MB or 1GiB.")
