"""Benchmark `bench loader`: speed of the loader on a manifest, compared with that of a plain script.

"plan" is the loader of `fit`. "plain" is that of a usual training script: the same data in torch's own shuffled batches
of a fixed number of utterances, decoded by soundfile. Both are measured in turn in the same process, several times.
"""

import io
import json
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import soundfile
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from w2v_lightning.command_line import Parser, parse, parser_of
from w2v_lightning.data.batch import Batch, InputSpec, SpecAugment, pad
from w2v_lightning.data.loader import UtteranceDataset, batch_loader
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.samplers import TrainSampler
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file

BASE_100H = SpecAugment(time_prob=0.65, channel_prob=0.5)  # the workers draw masks, which takes time
PLAIN_BATCH = 16
TABLE_WIDTH = 100  # columns; in a pipe, rich assumes 80, which would truncate figures


@dataclass(frozen=True)
class LoaderOptions:
    """Measure the audio-seconds per second that loader workers deliver.

    The loader of `fit` ("plan") takes turns with that of a usual training script ("plain").

    Args:
        manifest: path or URL of a manifest, as `prepare` writes it.
        workers: numbers of loader workers to measure, separated by commas.
        batch_seconds: audio per step, in seconds.
        device_seconds: audio per micro-batch, in seconds.
        repetitions: number of passes for each row of the table.
        seconds: duration in seconds after which a pass ends.
        cache_dir: folder that keeps remote audio files, like data.cache_dir.
        json: file to write all measurements to.
    """

    manifest: str
    workers: str = "0,1,2"
    batch_seconds: PositiveFloat = 1600.0
    device_seconds: PositiveFloat = 200.0
    repetitions: PositiveInt = 3
    seconds: NonNegativeFloat = 20.0
    cache_dir: str | None = None
    json: Path | None = None


@dataclass(frozen=True)
class Measurement:
    """Figures of one pass over (a part of) an epoch."""

    loader: str
    workers: int
    audio_s_per_s: float  # after the first batch
    audio_s_per_cpu_s: float  # CPU time of the main process and of the workers, start included
    first_batch_s: float  # from reading the manifest to the first batch in the main process
    padding: float  # share of the samples that a model would compute on
    memory_mib: float | None  # of all processes, shared memory counted once


def parser() -> Parser:
    """Return the parser of this command."""
    return parser_of(LoaderOptions, "bench loader", positional=["manifest"])


def main(args: Sequence[str]) -> int:
    """Measure, print a table of medians, and write the JSON file; return the exit status."""
    options = parse(LoaderOptions, "bench loader", args, positional=["manifest"])
    measurements = [
        measure(loader, workers, options)
        for _ in range(options.repetitions)
        for workers in _numbers(options.workers)
        for loader in LOADERS
    ]
    Console(width=max(Console().width, TABLE_WIDTH)).print(_table(measurements))
    if options.json:
        values = {key: value for key, value in vars(options).items() if isinstance(value, str | float | int)}
        report = {"settings": {"benchmark": "loader"} | values, "measurements": [asdict(m) for m in measurements]}
        with atomic_text_file(options.json) as file:
            json.dump(report, file, indent=1)
    return 0


def measure(loader: str, workers: int, options: LoaderOptions) -> Measurement:
    """Measure one pass of a loader over the manifest.

    Args:
        loader: name in LOADERS: "plan" or "plain".
        workers: number of loader workers.
        options: options of the command.

    Raises:
        InputError: the manifest cannot be read, or is too small for a second batch.
    """
    cpu_before_s, start_s = _cpu_s(), time.perf_counter()
    batches = iter(LOADERS[loader](options, workers))
    audio_s, computed_s = _size_s(next(batches))
    first_batch_s, first_audio_s = time.perf_counter() - start_s, audio_s
    for batch in batches:
        audio_s, computed_s = (a + b for a, b in zip((audio_s, computed_s), _size_s(batch), strict=True))
        if time.perf_counter() - start_s > options.seconds:
            break
    elapsed_s = time.perf_counter() - start_s - first_batch_s
    if audio_s == first_audio_s:
        raise InputError(f"{options.manifest} makes one batch only: lower --device_seconds and --batch_seconds.")
    memory_mib = _memory_mib()
    del batches  # ends the workers: the system reports their CPU time only after that
    return Measurement(
        loader=loader,
        workers=workers,
        audio_s_per_s=(audio_s - first_audio_s) / elapsed_s,
        audio_s_per_cpu_s=audio_s / (_cpu_s() - cpu_before_s),
        first_batch_s=first_batch_s,
        padding=1 - audio_s / computed_s,
        memory_mib=memory_mib,
    )


def _plan(options: LoaderOptions, workers: int) -> DataLoader:
    manifest = Manifest.load(options.manifest)
    reader = AudioReader(options.cache_dir)
    dataset = UtteranceDataset(manifest, InputSpec(spec_augment=BASE_100H), reader=reader, masked=True)
    limits = {"batch_seconds": options.batch_seconds, "device_seconds": options.device_seconds}
    sampler = TrainSampler(manifest.durations_s_N, **limits, seed=0, rank=0, world_size=1, is_share=True)
    return batch_loader(dataset, sampler, workers)


def _plain(options: LoaderOptions, workers: int) -> DataLoader:
    dataset = _PlainDataset(Manifest.load(options.manifest), AudioReader(options.cache_dir))
    return DataLoader(dataset, PLAIN_BATCH, shuffle=True, num_workers=workers, collate_fn=_pad_all)


LOADERS = {"plan": _plan, "plain": _plain}


class _PlainDataset(Dataset):
    def __init__(self, manifest: Manifest, reader: AudioReader):
        self.manifest = manifest
        self.reader = reader

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        (data,) = self.reader.read([self.manifest.audio(i)])
        waveform_T, sample_rate = soundfile.read(io.BytesIO(data), dtype="float32")
        return (waveform_T - waveform_T.mean()) / np.sqrt(waveform_T.var() + 1e-7), sample_rate


def _pad_all(items: list[tuple[np.ndarray, int]]) -> tuple[Tensor, list[float]]:
    """Return padded waveforms, and their durations in seconds, from (waveform, sample rate) of each."""
    return pad([waveform_T for waveform_T, _ in items]), [len(waveform_T) / rate for waveform_T, rate in items]


def _size_s(batch: Batch | tuple[Tensor, list[float]]) -> tuple[float, float]:
    """Seconds of audio, and seconds that a model would compute on, padding included."""
    if isinstance(batch, Batch):
        return batch.audio_seconds, batch.waveforms_BT.numel() / batch.sample_rate
    _, durations_s = batch
    return sum(durations_s), max(durations_s) * len(durations_s)


def _cpu_s() -> float:
    """CPU time of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory_mib() -> float | None:
    """Memory of this process and its workers, shared pages counted once (PSS); None without Linux's smaps_rollup."""
    kib = 0
    for pid in ("self", *(process.pid for process in active_children())):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            return None
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--workers is {text!r}: give numbers such as 0,1,2.") from None


def _table(measurements: list[Measurement]) -> Table:
    """Return the table of medians over the repetitions, and the range of the speed."""
    columns = ("loader", "workers", "audio-s/s", "range", "per CPU-s", "first (s)", "padding", "MiB")
    table = Table(*columns, box=box.SIMPLE)
    for loader, workers in dict.fromkeys((m.loader, m.workers) for m in measurements):
        rows = [m for m in measurements if (m.loader, m.workers) == (loader, workers)]
        speeds = [m.audio_s_per_s for m in rows]
        medians = {
            name: statistics.median(getattr(m, name) or 0 for m in rows)
            for name in ("audio_s_per_s", "audio_s_per_cpu_s", "first_batch_s", "padding", "memory_mib")
        }
        table.add_row(
            loader,
            str(workers),
            f"{medians['audio_s_per_s']:,.0f}",
            f"{min(speeds):.0f}-{max(speeds):.0f}",
            f"{medians['audio_s_per_cpu_s']:,.0f}",
            f"{medians['first_batch_s']:.2f}",
            f"{medians['padding']:.1%}",
            f"{medians['memory_mib']:,.0f}" if medians["memory_mib"] else "",
        )
    return table
