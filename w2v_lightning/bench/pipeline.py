"""transformers' automatic-speech-recognition pipeline, fed in each of the ways in which a user could feed it.

It allows itself one process for reading and features. So there are three feeds: "files", the names of the files, which
that process decodes by ffmpeg; "arrays", which it decodes by soundfile; and "loader", decoded by soundfile in as many
loader processes as ours has, features then in the main process. Names and arrays come as a torch Dataset, the loader's
as a generator, as transformers' documentation has it.
"""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import soundfile
import torch
import transformers
from torch.utils.data import DataLoader, Dataset

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import SAMPLE_RATE
from w2v_lightning.data.decode import resample
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError

FEEDS = ("files", "arrays", "loader")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """One way to run the pipeline."""

    feed: str
    batch_size: int
    dtype: str
    is_sorted: bool = False  # the longest first; otherwise in the order given

    def __str__(self) -> str:
        order = ", sorted" if self.is_sorted else ""
        return f"pipeline: {self.feed}, batch {self.batch_size}, {self.dtype}{order}"


def variants(feeds: tuple[str, ...], batch_sizes: list[int], dtypes: list[str]) -> list[Variant]:
    """All combinations; a batch of one gains nothing from sorting."""
    return [
        Variant(feed, batch_size, dtype, is_sorted)
        for dtype, feed, batch_size, is_sorted in product(dtypes, feeds, batch_sizes, (False, True))
        if batch_size > 1 or not is_sorted
    ]


def usable_feeds(manifest: Manifest) -> tuple[str, ...]:
    """ "files" only where ffmpeg is installed and each utterance is a local file of its own.

    Raises:
        InputError: an utterance is a segment of a longer recording, which the pipeline cannot read.
    """
    refs = [manifest.audio(i) for i in range(len(manifest))]
    for ref in refs:
        if ref.start_s is not None:
            raise InputError(f"{ref}: the pipeline cannot read segments of a recording; give whole files or shards.")
    are_files = not any(ref.num_bytes or is_remote(ref.url) for ref in refs)
    return FEEDS if are_files and shutil.which("ffmpeg") else FEEDS[1:]


class Pipelines:
    """The pipeline of one model, one per dtype, loaded when it is first asked for.

    Args:
        folder: of the model.
        device: where it computes.
        num_workers: loader processes of the feed "loader".
    """

    def __init__(self, folder: Path, device: torch.device, num_workers: int):
        self.folder = folder
        self.device = device
        self.num_workers = num_workers
        self._of_dtype: dict[str, transformers.Pipeline] = {}

    def transcribe(self, manifest: Manifest, variant: Variant) -> Iterator[tuple[int, str]]:
        """(position in the manifest, text) of each utterance; tokens such as <s> stay in the text."""
        positions = np.arange(len(manifest))
        if variant.is_sorted:
            positions = np.argsort(-manifest.durations_s_N, kind="stable")
        refs = [manifest.audio(i) for i in positions]
        found = self._run(refs, variant)
        return zip(positions.tolist(), (row["text"] for row in found), strict=True)

    def _run(self, refs: list[AudioRef], variant: Variant) -> Iterator[dict[str, str]]:
        pipeline = self._pipeline(variant.dtype)
        if variant.feed == "loader":
            arrays = DataLoader(_Arrays(refs), batch_size=None, num_workers=self.num_workers)
            return pipeline((waveform_T.numpy() for waveform_T in arrays), batch_size=variant.batch_size, num_workers=0)
        dataset = _Names(refs) if variant.feed == "files" else _Arrays(refs)
        return pipeline(dataset, batch_size=variant.batch_size, num_workers=1)

    def _pipeline(self, dtype: str) -> transformers.Pipeline:
        if dtype not in self._of_dtype:
            self._of_dtype[dtype] = transformers.pipeline(
                "automatic-speech-recognition", model=str(self.folder), dtype=getattr(torch, dtype), device=self.device
            )
        return self._of_dtype[dtype]


class _Names(Dataset):
    def __init__(self, refs: list[AudioRef]):
        self.refs = refs

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, i: int) -> str:
        return self.refs[i].url


class _Arrays(Dataset):
    """float32 waveforms, decoded by soundfile."""

    def __init__(self, refs: list[AudioRef]):
        self.refs = refs
        self.reader = AudioReader()

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, i: int) -> np.ndarray:
        (data,) = self.reader.read([self.refs[i]])
        samples, sample_rate = soundfile.read(io.BytesIO(data), dtype="float32")
        waveform_T = samples if samples.ndim == 1 else samples.mean(axis=1)
        return waveform_T if sample_rate == SAMPLE_RATE else resample(waveform_T, sample_rate)
