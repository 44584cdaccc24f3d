"""`bench loader`: how fast batches come out of a manifest, beside what a plain script does.

"plan" is what `fit` uses. "plain" is the same dataset under torch's own shuffled batches of a fixed number of
utterances, decoded by soundfile: a usual training script. Both are measured in turn in the same process, several times.
"""

import argparse
import io
import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import soundfile
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from w2v_lightning.data.batch import SAMPLE_RATE, Batch, InputSpec, SpecAugment, pad
from w2v_lightning.data.loader import UtteranceDataset, batch_loader
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.data.samplers import TrainSampler
from w2v_lightning.errors import InputError
from w2v_lightning.runtime.files import atomic_text_file

BASE_100H = SpecAugment(time_prob=0.65, channel_prob=0.5)  # masks are drawn in the workers, and cost them time
PLAIN_BATCH = 16
TABLE_WIDTH = 100  # columns; a pipe would be given 80, which cuts figures off


@dataclass(frozen=True)
class Measurement:
    """One pass over (a part of) an epoch."""

    loader: str
    workers: int
    audio_s_per_s: float  # after the first batch
    audio_s_per_cpu_s: float  # CPU time of the main process and of the workers, start included
    first_batch_s: float  # from reading the manifest to the first batch in the main process
    padding: float  # share of what a model would compute on
    memory_mib: float | None  # of all processes, what they share counted once


def add_parser(benchmarks: argparse._SubParsersAction) -> None:
    parser = benchmarks.add_parser("loader", help="audio-seconds per second that loader workers deliver")
    parser.add_argument("manifest", metavar="MANIFEST", help="as `prepare` writes it; a path or URL")
    parser.add_argument("--workers", default="0,1,2", help="numbers of loader workers to try (default %(default)s)")
    parser.add_argument("--batch-seconds", type=float, default=1600.0, help="audio per step (default %(default)g)")
    parser.add_argument("--device-seconds", type=float, default=200.0, help="audio per batch (default %(default)g)")
    parser.add_argument("--repetitions", type=int, default=3, help="passes per row (default %(default)d)")
    parser.add_argument("--seconds", type=float, default=20.0, help="end a pass after this long (default %(default)g)")
    parser.add_argument("--cache-dir", help="as data.cache_dir, for manifests whose audio is remote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, print a table of medians, write the JSON file."""
    measurements = [
        measure(loader, workers, options)
        for _ in range(options.repetitions)
        for workers in _numbers(options.workers)
        for loader in LOADERS
    ]
    Console(width=max(Console().width, TABLE_WIDTH)).print(_table(measurements))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if isinstance(value, str | float | int)}
        with atomic_text_file(options.json) as file:
            json.dump({"settings": settings, "measurements": [asdict(m) for m in measurements]}, file, indent=1)


def measure(loader: str, workers: int, options: argparse.Namespace) -> Measurement:
    """One pass of "plan" or "plain" over the manifest.

    Raises:
        InputError: the manifest cannot be read, or is too small for a second batch.
    """
    cpu_before_s, started = _cpu_s(), time.perf_counter()
    batches = iter(LOADERS[loader](options, workers))
    audio_s, computed_s = _size_s(next(batches))
    first_batch_s, first_audio_s = time.perf_counter() - started, audio_s
    for batch in batches:
        audio_s, computed_s = (a + b for a, b in zip((audio_s, computed_s), _size_s(batch), strict=True))
        if time.perf_counter() - started > options.seconds:
            break
    elapsed_s = time.perf_counter() - started - first_batch_s
    if audio_s == first_audio_s:
        raise InputError(f"{options.manifest} makes one batch only: lower --device-seconds and --batch-seconds.")
    memory_mib = _memory_mib()
    del batches  # ends the workers, whose CPU time is known only then
    return Measurement(
        loader=loader,
        workers=workers,
        audio_s_per_s=(audio_s - first_audio_s) / elapsed_s,
        audio_s_per_cpu_s=audio_s / (_cpu_s() - cpu_before_s),
        first_batch_s=first_batch_s,
        padding=1 - audio_s / computed_s,
        memory_mib=memory_mib,
    )


def _plan(options: argparse.Namespace, workers: int) -> DataLoader:
    manifest = Manifest.load(options.manifest)
    reader = AudioReader(options.cache_dir)
    dataset = UtteranceDataset(manifest, InputSpec(spec_augment=BASE_100H), reader=reader, masked=True)
    limits = {"batch_seconds": options.batch_seconds, "device_seconds": options.device_seconds}
    return batch_loader(dataset, TrainSampler(manifest.durations_s_N, **limits, seed=0, rank=0, world_size=1), workers)


def _plain(options: argparse.Namespace, workers: int) -> DataLoader:
    dataset = _PlainDataset(Manifest.load(options.manifest), AudioReader(options.cache_dir))
    return DataLoader(dataset, PLAIN_BATCH, shuffle=True, num_workers=workers, collate_fn=_pad_all)


LOADERS = {"plan": _plan, "plain": _plain}


class _PlainDataset(Dataset):
    def __init__(self, manifest: Manifest, reader: AudioReader):
        self.manifest = manifest
        self.reader = reader

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, i: int) -> np.ndarray:
        (data,) = self.reader.read([self.manifest.audio(i)])
        waveform_T, _ = soundfile.read(io.BytesIO(data), dtype="float32")
        return (waveform_T - waveform_T.mean()) / np.sqrt(waveform_T.var() + 1e-7)


def _pad_all(waveforms: list[np.ndarray]) -> tuple[Tensor, int]:
    return pad(waveforms), sum(map(len, waveforms))


def _size_s(batch: Batch | tuple[Tensor, int]) -> tuple[float, float]:
    """Seconds of audio, and of what a model would compute on."""
    if isinstance(batch, Batch):
        return batch.audio_seconds, batch.waveforms_BT.numel() / SAMPLE_RATE
    waveforms_BT, num_samples = batch
    return num_samples / SAMPLE_RATE, waveforms_BT.numel() / SAMPLE_RATE


def _cpu_s() -> float:
    """CPU time of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory_mib() -> float | None:
    """Memory of this process and its workers, shared pages counted once (PSS); None where the system does not say."""
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
        raise InputError(f"--workers must be numbers such as 0,1,2, found {text!r}.") from None


def _table(measurements: list[Measurement]) -> Table:
    """Medians of the repetitions, and the range of the speed."""
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
