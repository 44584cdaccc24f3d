import io
import os
import pickle
import sys

import fsspec
import numpy as np
import pytest
import soundfile
from corpus import spell
from fsspec.registry import _registry

from w2v_lightning.data import reader as reader_module
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.reader import AudioReader, has_valid_md5
from w2v_lightning.errors import InputError


def flac(text: str = "ABC", subtype: str = "PCM_16", channels: int = 1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.stack([spell(text)] * channels, axis=1), 16_000, subtype, format="FLAC")
    return file.getvalue()


def damaged(data: bytes) -> bytes:
    """Return FLAC data with one changed sample, in which FLAC's frame checksums are valid."""
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    samples[1000] += 1
    file = io.BytesIO()
    soundfile.write(file, samples, rate, "PCM_16", format="FLAC")
    other = file.getvalue()
    return other[:26] + data[26:42] + other[42:]


@pytest.fixture
def memory():
    """In-memory file system of fsspec, as a stand-in for a remote one."""
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()


def test_ranges_and_whole_files_local_and_remote_come_in_order(tmp_path, memory):
    (tmp_path / "one.tar").write_bytes(b"0123456789")
    (tmp_path / "two.flac").write_bytes(b"abcdefghij")
    memory.pipe("/shards/three.tar", b"ABCDEFGHIJ")
    refs = [
        AudioRef("memory://shards/three.tar", 4, 2),
        AudioRef(f"{tmp_path}/one.tar", 2, 3),
        AudioRef(f"file://{tmp_path}/two.flac"),
        AudioRef("memory://shards/three.tar"),
        AudioRef(f"{tmp_path}/one.tar", 0, 10),
        AudioRef(f"{tmp_path}/two.flac", byte_offset=7),
    ]
    expected = [b"EF", b"234", b"abcdefghij", b"ABCDEFGHIJ", b"0123456789", b"hij"]
    reader = AudioReader()
    assert reader.read(refs) == expected
    assert reader.read(refs[::-1]) == expected[::-1]
    assert reader.read([]) == []


def test_a_shard_is_opened_once_and_few_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    opened = []
    real_open = os.open
    monkeypatch.setattr(reader_module.os, "open", lambda path, flags: opened.append(path[-1]) or real_open(path, flags))
    before = len(os.listdir("/dev/fd"))
    reader = AudioReader()
    for name in "abaca":
        assert reader.read([AudioRef(f"{tmp_path}/{name}", 50, 10)]) == [name.encode() * 10]
    assert opened == ["a", "b", "c"]  # when c was read, a had been used after b
    assert len(os.listdir("/dev/fd")) - before == 2
    del reader
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize(("offset", "found"), [(95, 5), (100, 0), (2000, 0)])
def test_a_short_read_is_named(tmp_path, offset, found):
    (tmp_path / "one.tar").write_bytes(bytes(100))
    with pytest.raises(InputError, match=rf"one\.tar \(bytes {offset} to .*: expected 10 bytes, found {found}: "):
        AudioReader().read([AudioRef(f"{tmp_path}/one.tar", offset, 10)])


@pytest.mark.parametrize("num_bytes", [0, 10])
@pytest.mark.parametrize(("name", "reason"), [("missing.tar", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, num_bytes, reason):
    with pytest.raises(InputError, match=f"{name}.*: cannot be read: {reason}"):
        AudioReader().read([AudioRef(f"{tmp_path}/{name}", 0, num_bytes)])


@pytest.mark.parametrize(
    "url",
    [
        "ssh://host/a.flac",
        "github://org:repo@/a.flac",
        "reference://a.flac",
        "S3://bucket/a.flac",
        "zip://a.flac::s3://bucket/a.zip",
        "memory://a.flac::memory://b",
        "python://a.flac",
    ],
)
def test_a_url_that_might_run_code_or_unpack_is_refused(url, monkeypatch):
    monkeypatch.setattr(fsspec, "filesystem", lambda *args, **kwargs: pytest.fail("was opened"))
    with pytest.raises(InputError, match="files are read from local paths and file, s3, gs, "):
        AudioReader().read([AudioRef(url)])


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [("s3", "s3fs", "'w2v-lightning[aws]'"), ("gs", "gcsfs", "gcsfs"), ("az", "adlfs", "adlfs")],
)
def test_a_missing_package_is_named(monkeypatch, scheme, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # in case another test has loaded it
    with pytest.raises(InputError) as raised:
        AudioReader().read([AudioRef(f"{scheme}://bucket/a.flac")])
    assert str(raised.value) == f"{scheme}:// needs a package: pip install {package}"


def test_a_missing_remote_file_is_named(memory):
    with pytest.raises(InputError, match=r"^memory://missing\.flac: object not found"):
        AudioReader().read([AudioRef("memory://missing.flac")])


def test_a_remote_file_that_is_shorter_than_the_manifest_says_is_never_handed_on(memory, monkeypatch):
    monkeypatch.setattr("w2v_lightning.data.remote.PATIENCE_S", 0.0)
    memory.pipe("/one.tar", bytes(100))
    with pytest.raises(InputError, match="requested 20 bytes, received 10"):
        AudioReader().read([AudioRef("memory://one.tar", 90, 20)])
    with pytest.raises(InputError, match="the file has 100 bytes"):
        AudioReader().read([AudioRef("memory://one.tar", 100)])


def test_pickling_carries_the_options_and_nothing_is_made_before_the_first_read(tmp_path, memory):
    reader = AudioReader(tmp_path / "cache", cache_gib=1.5, verify=True)
    memory.pipe("/a", b"a")
    assert not (tmp_path / "cache").exists()
    reader.read([AudioRef("memory://a")])
    copy = pickle.loads(pickle.dumps(reader))
    assert (copy.cache_dir, copy.cache_gib, copy.verify) == (tmp_path / "cache", 1.5, True)
    memory.store.clear()
    assert copy.read([AudioRef("memory://a")]) == [b"a"]


def test_remote_ranges_are_cached_and_local_files_are_not(tmp_path, memory):
    memory.pipe("/one.tar", b"0123456789")
    (tmp_path / "a.flac").write_bytes(b"abc")
    refs = [AudioRef("memory://one.tar", 2, 3), AudioRef(f"{tmp_path}/a.flac"), AudioRef("memory://one.tar", 7, 1)]
    reader = AudioReader(tmp_path / "cache")
    assert reader.read(refs[:2]) == [b"234", b"abc"]
    memory.pipe("/one.tar", b"..........")
    assert reader.read(refs) == [b"234", b"abc", b"."]
    assert len([path for path in (tmp_path / "cache").rglob("*-*") if path.is_file()]) == 2


@pytest.mark.parametrize("cache_gib", [0, -1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(tmp_path, cache_gib):
    with pytest.raises(InputError, match=r"data\.cache_gib must be a positive number"):
        AudioReader(tmp_path, cache_gib=cache_gib)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_the_md5_of_flac_is_that_of_its_samples_whatever_their_width(subtype, channels):
    data = flac("ABC", subtype, channels)
    assert has_valid_md5(data)
    assert any(data[26:42])
    assert not has_valid_md5(data[:26] + bytes(15) + b"x" + data[42:])
    assert has_valid_md5(data[:26] + bytes(16) + data[42:])  # an encoder may leave it out


def test_other_formats_are_not_verified(tmp_path):
    soundfile.write(tmp_path / "a.wav", spell("A"), 16_000)
    assert has_valid_md5((tmp_path / "a.wav").read_bytes())


@pytest.mark.parametrize("damage", [damaged, lambda data: data[: len(data) // 2], lambda data: data[:60]])
def test_damaged_flac_is_refused_when_verified_and_only_then(tmp_path, damage):
    (tmp_path / "good.flac").write_bytes(flac())
    (tmp_path / "bad.flac").write_bytes(damage(flac()))
    refs = [AudioRef(f"{tmp_path}/{name}.flac") for name in ("good", "bad")]
    assert len(AudioReader().read(refs)) == 2
    assert AudioReader(verify=True).read(refs[:1]) == [flac()]
    with pytest.raises(InputError, match=r"bad\.flac: the FLAC data is damaged"):
        AudioReader(verify=True).read(refs)


def test_damage_in_the_cache_is_repaired_from_the_store_and_damage_in_the_store_is_named(tmp_path, memory):
    memory.pipe("/a.flac", flac())
    ref = AudioRef("memory://a.flac", 0, len(flac()))
    reader = AudioReader(tmp_path, verify=True)
    reader.read([ref])
    (cached,) = tmp_path.glob(f"*/0-{len(flac())}")
    cached.write_bytes(bad := flac()[:-5] + b"wrong")
    assert AudioReader(tmp_path).read([ref]) == [bad]
    assert reader.read([ref]) == [flac()]
    assert cached.read_bytes() == flac()
    memory.pipe("/b.flac", bad)
    with pytest.raises(InputError, match=r"^memory://b\.flac.* the FLAC data is damaged"):
        reader.read([AudioRef("memory://b.flac", 0, len(bad))])
