import json
import sys
import uuid
from pathlib import Path

import pytest
from corpus import random_texts, write_split
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from w2v_lightning.errors import InputError
from w2v_lightning.prepare import upload

SIZE = ("--shard-size", "60KB")


@pytest.fixture
def corpus(tmp_path) -> Path:
    write_split(tmp_path / "corpus", "dev-clean", random_texts(16, seed=6))
    return tmp_path / "corpus"


@pytest.fixture
def url(monkeypatch) -> str:
    """URL of an empty folder in memory, without pauses between tries."""
    monkeypatch.setattr(upload, "FIRST_PAUSE_S", 0)
    return f"memory://{uuid.uuid4().hex}/prefix"


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """Names of the uploaded files, in order."""
    names: list[str] = []
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "put_file",
        lambda self, local, remote, **options: names.append(Path(remote).name) or put(self, local, remote, **options),
    )
    return names


def there(url: str) -> dict[str, bytes]:
    store, root = MemoryFileSystem(), url.removeprefix("memory:/")
    return {name.removeprefix(f"{root}/"): store.cat_file(name) for name in store.find(root)}


def here(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def test_everything_arrives_and_the_manifest_after_its_shards(corpus, prepare, url, sent):
    out = prepare(corpus, *SIZE, "--to", url)
    assert there(url) == here(out)
    assert len([name for name in sent if name.endswith(".tar")]) > 2
    assert sent[-3:] == ["dev-clean.jsonl", "manifest.jsonl", "stats.json"]
    assert json.loads((out / "stats.json").read_text())["options"]["to"] == url


def test_upload_implies_shards_and_the_manifest_loads_from_there(corpus, prepare, url):
    from w2v_lightning.data.manifest import Manifest

    prepare(corpus, "--to", f"{url}/")
    manifest = Manifest.load(f"{url}/manifest.jsonl")
    assert len(manifest) == 16
    ref = manifest.audio(3)
    assert ref.url == f"{url}/shards/dev-clean-000000.tar"
    data = MemoryFileSystem().cat_file(ref.url, ref.byte_offset, ref.byte_offset + ref.num_bytes)
    assert data == (corpus / "dev-clean" / "19" / "1" / f"{manifest.ids[3]}.flac").read_bytes()


def failing(put, failures: int, fault):
    """Wrap `put` so that the first tries of each file call `fault` instead."""
    tries: dict[str, int] = {}

    def put_file(self, local, remote, **options):
        tries[remote] = tries.get(remote, 0) + 1
        return fault(remote) if tries[remote] <= failures else put(self, local, remote, **options)

    return put_file


def time_out(remote: str) -> None:
    raise TimeoutError


def cut_short(remote: str) -> None:
    MemoryFileSystem().pipe_file(remote, b"half")


def refuse(remote: str) -> None:
    raise PermissionError("AKIAIOSFODNN7EXAMPLE may not write")


class SlowDown(Exception):  # noqa: N818
    """Error that is not an OSError, as botocore's."""


def slow_down(remote: str) -> None:
    raise SlowDown


@pytest.mark.parametrize("fault", [time_out, cut_short, slow_down])
def test_faults_that_pass_cost_only_time(corpus, prepare, url, monkeypatch, fault):
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(MemoryFileSystem, "put_file", failing(put, upload.TRIES - 1, fault))
    out = prepare(corpus, *SIZE, "--to", url)
    assert there(url) == here(out)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (time_out, r"failed 6 times \(TimeoutError\)\. Run the same command again; it resumes where it stopped"),
        (cut_short, r"failed 6 times \(SizeMismatchError\)"),
        (refuse, r"was refused \(PermissionError\); check the bucket and your permissions"),
    ],
)
def test_faults_that_stay_end_the_run_without_a_manifest_and_it_goes_on(
    corpus, prepare, url, monkeypatch, sent, fault, message
):
    put = MemoryFileSystem.put_file
    only_second = failing(put, 99, fault)
    with monkeypatch.context() as patch:
        patch.setattr(
            MemoryFileSystem,
            "put_file",
            lambda self, local, remote: (only_second if "000001" in remote else put)(self, local, remote),
        )
        with pytest.raises(InputError, match=f"--to {url}: shards/dev-clean-000001.tar .*{message}") as raised:
            prepare(corpus, *SIZE, "--to", url)
    assert "AKIA" not in str(raised.value)
    assert "manifest.jsonl" not in there(url)
    assert not (corpus.parent / "out" / "stats.json").exists()
    arrived = set(sent)
    sent.clear()
    out = prepare(corpus, *SIZE, "--to", url)
    assert there(url) == here(out)
    assert "dev-clean-000001.tar" in sent
    assert not arrived.intersection(name for name in sent if name.endswith(".tar"))


def test_a_second_run_uploads_nothing(corpus, prepare, url, sent):
    prepare(corpus, *SIZE, "--to", url)
    sent.clear()
    prepare(corpus, *SIZE, "--to", url)
    assert sent == []


def test_another_corpus_there_is_not_mixed_with(corpus, prepare, url, sent):
    prepare(corpus, *SIZE, "--to", url)
    sent.clear()
    with pytest.raises(InputError, match=f"{url} holds the output of another run: .*Choose another --to"):
        prepare(corpus, *SIZE, "--to", url, "--max-duration", "2", out="other")
    assert sent == []


def test_tries_wait_longer_each_time(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(upload.time, "sleep", pauses.append)
    there = upload.Upload("memory://bucket/prefix")
    with pytest.raises(InputError):
        there._retrying("name", lambda: time_out(""))
    assert pauses == [0, 1, 2, 4, 8, 16]


def test_missing_s3fs_is_named(corpus, prepare, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # another test may have used it
    with pytest.raises(InputError, match=r"--to s3://bucket/prefix .*pip install 'w2v-lightning\[aws\]'"):
        prepare(corpus, "--to", "s3://bucket/prefix")


def test_unknown_store_is_an_error(corpus, prepare):
    with pytest.raises(InputError, match="--to nothing://bucket"):
        prepare(corpus, "--to", "nothing://bucket")


def test_a_password_in_the_url_is_refused_and_not_repeated(corpus, prepare):
    with pytest.raises(InputError, match="--to contains a user or password in its URL") as raised:
        prepare(corpus, "--to", "s3://AKIA:secret@bucket/prefix")
    assert "secret" not in str(raised.value)
