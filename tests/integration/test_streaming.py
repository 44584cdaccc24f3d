"""Training data in S3: ranged reads of shards in loader workers, with faults, and a cache on local disk."""

import io
import json
import multiprocessing
import tarfile
from pathlib import Path

import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, random_texts, spell, write_split
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from s3 import PASSING, Fault, every
from tiny import TINY_CONFIG
from torch.utils.data import DataLoader, Dataset

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.data import remote
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.prepare import command as prepare

pytest_plugins = ["s3"]

NUM_SHARDS = 3


class Corpus:
    """Utterances in tar shards, on local disk and in the store, with a manifest of each and the bytes of the audio."""

    def __init__(self, folder: Path, store, num_utterances: int):
        texts = random_texts(num_utterances, seed=1)
        self.flacs = [_flac(text) for text in texts]
        self.local, self.remote = folder / "local", folder / "remote"
        self.local.mkdir(parents=True)
        self.remote.mkdir()
        for number in range(NUM_SHARDS):
            members = range(number, num_utterances, NUM_SHARDS)
            path = self.local / f"shard-{number}.tar"
            path.write_bytes(_tar({f"u{i}.flac": self.flacs[i] for i in members}))
            url = store.put(path.name, path.read_bytes())
            for root, audio_path in ((self.local, path.name), (self.remote, url)):
                _append_rows(root / "train.jsonl", audio_path, path, texts)
        self.manifest = Manifest.load(self.remote / "train.jsonl")
        self.refs = [self.manifest.audio(self.manifest.ids.index(f"u{i}")) for i in range(num_utterances)]


def _flac(text: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, spell(text), SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return file.getvalue()


def _append_rows(manifest: Path, audio_path: str, shard: Path, texts: list[str]) -> None:
    with tarfile.open(shard) as tar, manifest.open("a") as file:
        for member in tar:
            text = texts[int(Path(member.name).stem[1:])]
            place = {"byte_offset": member.offset_data, "num_bytes": member.size}
            row = {"id": Path(member.name).stem, "audio_filepath": audio_path, "text": text, **place}
            file.write(json.dumps(row | {"duration": len(spell(text)) / SAMPLE_RATE}) + "\n")


@pytest.fixture
def corpus(tmp_path, store):
    return Corpus(tmp_path / "corpus", store, 36)


class Bodies(Dataset):
    """Bytes of the utterances of a batch."""

    def __init__(self, reader: AudioReader, refs: list[AudioRef]):
        self.reader = reader
        self.refs = refs

    def __getitem__(self, positions: list[int]) -> list[bytes]:
        return self.reader.read([self.refs[i] for i in positions])


def read_all(reader: AudioReader, refs: list[AudioRef], num_workers: int = 2) -> list[bytes]:
    batches = [range(i, min(i + 6, len(refs))) for i in range(0, len(refs), 6)]
    loader = DataLoader(Bodies(reader, refs), batch_size=None, sampler=batches, num_workers=num_workers)
    return [body for bodies in loader for body in bodies]


def test_workers_read_every_utterance_bit_for_bit_through_all_faults(store, corpus, monkeypatch):
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    store.proxy.fault_of = every(3, *PASSING)
    assert read_all(AudioReader(), corpus.refs) == corpus.flacs
    assert store.proxy.num_faults > len(PASSING)


def test_a_fork_after_the_first_read_harms_neither_side(store, corpus):
    reader = AudioReader()
    manifest = Manifest.load(store.put("train.jsonl", (corpus.remote / "train.jsonl").read_bytes()))  # read by fsspec
    assert len(manifest) == len(corpus.refs)
    for _ in range(2):
        assert reader.read(corpus.refs[:4]) == corpus.flacs[:4]
        assert read_all(reader, corpus.refs) == corpus.flacs
    assert reader.read(corpus.refs) == corpus.flacs


def test_spawned_workers_read_too(corpus):
    reader = AudioReader()
    reader.read(corpus.refs[:1])
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(reader.read, (corpus.refs,)) == corpus.flacs


def test_a_second_epoch_asks_the_store_for_nothing(tmp_path, store, corpus):
    reader = AudioReader(tmp_path / "cache", verify=True)
    for _ in range(2):
        assert read_all(reader, corpus.refs) == corpus.flacs
        assert len(store.proxy.requests) == len(corpus.refs)


def test_a_cache_that_is_too_small_gives_no_wrong_byte(tmp_path, store, corpus):
    """Let two workers evict files that the other has just written or is about to read, in each epoch."""
    total = sum(map(len, corpus.flacs))
    reader = AudioReader(tmp_path / "cache", cache_gib=total / 3 / 2**30)
    for _ in range(3):
        assert read_all(reader, corpus.refs) == corpus.flacs
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*-*"))
    assert 0 < kept < total / 2
    assert len(corpus.refs) < len(store.proxy.requests) <= 3 * len(corpus.refs)


def losses(root: Path | str, logs: Path, **options) -> list[str]:
    """Train a tiny model for two epochs and return the logged loss of each step."""
    torch.manual_seed(0)
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, learning_rate=3e-3)
    data = LibriSpeechDataModule(
        str(root), ["train"], ["train"], ["train"], batch_seconds=16, device_seconds=8, num_workers=1, **options
    )
    run = Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=CSVLogger(logs),
        **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    torch.manual_seed(0)
    run.fit(module, datamodule=data)
    header, *rows = (Path(run.logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train_loss")
    return [loss for row in rows if (loss := row.split(",")[column])]


@pytest.mark.slow
def test_fit_from_a_faulty_store_learns_the_same_as_from_local_shards(tmp_path, store, corpus, monkeypatch):
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    store.proxy.fault_of = every(3, *PASSING)
    streamed = losses(corpus.remote, tmp_path / "streamed", cache_dir=str(tmp_path / "cache"), verify_audio=True)
    assert store.proxy.num_faults > len(PASSING)
    assert len(streamed) >= 4
    assert streamed == losses(corpus.local, tmp_path / "local")


@pytest.mark.slow
def test_what_prepare_uploads_is_what_fit_streams(tmp_path, store, monkeypatch):
    """Use the store as root, so that manifests are read from it too, with faults in upload and training."""
    monkeypatch.setattr(remote, "READ_TIMEOUT_S", 0.5)
    for split, seed in (("train", 1), ("dev", 2)):
        write_split(tmp_path / "corpus", split, random_texts(24, seed=seed), speaker=str(seed))
    url = f"s3://{store.bucket}/prefix"
    store.proxy.fault_of = every(7, Fault.SLOW_DOWN, Fault.RESET)
    prepare.main([str(tmp_path / "corpus"), "--out", str(tmp_path / "out"), "--shard-size", "100KB", "--to", url])
    assert len(list((tmp_path / "out" / "shards").glob("train-*.tar"))) > 1
    assert store.proxy.num_faults
    store.proxy.fault_of = every(3, *PASSING)
    streamed = losses(url, tmp_path / "streamed")
    assert store.proxy.num_faults > len(PASSING)
    assert len(streamed) >= 4
    assert streamed == losses(tmp_path / "out", tmp_path / "local")
