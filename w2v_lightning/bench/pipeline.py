"""Pipeline of transformers for automatic speech recognition, with each of the inputs that a user could give it.

The pipeline uses one process for reading and features. There are three feeds: "files" are names of files, which that
process decodes with ffmpeg; "arrays" are decoded in that process by soundfile; "loader" are decoded by soundfile in as
many loader processes as ours has, and the main process computes the features. As transformers' documentation
recommends, names and arrays are a torch Dataset, and the loader's arrays a generator.
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
from w2v_lightning.data.decode import resample
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.remote import is_remote
from w2v_lightning.errors import InputError
from w2v_lightning.model.stored import waveform_format

FEEDS = ("files", "arrays", "loader")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Variant:
    """Feed, batch size, data type and order of a run of the pipeline."""

    feed: str
    batch_size: int
    dtype: str
    is_sorted: bool = False  # the longest first; otherwise in the order given

    def __str__(self) -> str:
        order = ", sorted" if self.is_sorted else ""
        return f"pipeline: {self.feed}, batch {self.batch_size}, {self.dtype}{order}"


def variants(feeds: tuple[str, ...], batch_sizes: list[int], dtypes: list[str]) -> list[Variant]:
    """Return all combinations, without sorted batches of one, which gain nothing."""
    return [
        Variant(feed, batch_size, dtype, is_sorted)
        for dtype, feed, batch_size, is_sorted in product(dtypes, feeds, batch_sizes, (False, True))
        if batch_size > 1 or not is_sorted
    ]


def usable_feeds(manifest: Manifest) -> tuple[str, ...]:
    """Return the feeds that work here: "files" needs ffmpeg, and each utterance in a local file of its own.

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
    """Pipelines of one model, one for each data type, loaded when first used.

    Args:
        folder: folder of the model.
        device: device to compute on.
        num_workers: number of loader processes of the feed "loader".
    """

    def __init__(self, folder: Path, device: torch.device, num_workers: int):
        self.folder = folder
        self.device = device
        self.num_workers = num_workers
        self._of_dtype: dict[str, transformers.Pipeline] = {}

    def transcribe(self, manifest: Manifest, variant: Variant) -> Iterator[tuple[int, str]]:
        """Iterate over (position in the manifest, text) of each utterance; tokens such as <s> stay in the text."""
        positions = np.arange(len(manifest))
        if variant.is_sorted:
            positions = np.argsort(-manifest.durations_s_N, kind="stable")
        refs = [manifest.audio(i) for i in positions.tolist()]
        rows = self._run(refs, variant)
        return zip(positions.tolist(), (row["text"] for row in rows), strict=True)

    def _run(self, refs: list[AudioRef], variant: Variant) -> Iterator[dict[str, str]]:
        pipeline = self._pipeline(variant.dtype)
        sample_rate = waveform_format(str(self.folder)).sample_rate
        if variant.feed == "loader":
            arrays = DataLoader(_Arrays(refs, sample_rate), batch_size=None, num_workers=self.num_workers)
            return pipeline((waveform_T.numpy() for waveform_T in arrays), batch_size=variant.batch_size, num_workers=0)
        dataset = _Names(refs) if variant.feed == "files" else _Arrays(refs, sample_rate)
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
    """float32 waveforms at the sample rate (Hz) of the model, decoded by soundfile."""

    def __init__(self, refs: list[AudioRef], sample_rate: int):
        self.refs = refs
        self.sample_rate = sample_rate
        self.reader = AudioReader()

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, i: int) -> np.ndarray:
        (data,) = self.reader.read([self.refs[i]])
        samples, file_rate = soundfile.read(io.BytesIO(data), dtype="float32")
        waveform_T = samples if samples.ndim == 1 else samples.mean(axis=1)
        return waveform_T if file_rate == self.sample_rate else resample(waveform_T, file_rate, self.sample_rate)
