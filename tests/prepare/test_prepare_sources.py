import csv
import gzip
import io
import json
import shutil
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, random_texts, spell, write_split

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.archive import read_archive

SPLITS = {"dev-clean": ("84", random_texts(3, seed=1)), "train-clean-100": ("19", random_texts(4, seed=2))}
TEXT_OF_ID = {f"{speaker}-1-{i:04}": text for speaker, texts in SPLITS.values() for i, text in enumerate(texts)}
SPLIT_OF_ID = {f"{speaker}-1-{i:04}": split for split, (speaker, texts) in SPLITS.items() for i in range(len(texts))}


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Corpus of two splits in LibriSpeech's layout."""
    root = tmp_path / "LibriSpeech"
    for split, (speaker, texts) in SPLITS.items():
        write_split(root, split, texts, speaker)
    (root / "README.TXT").write_text("not a transcript")
    return root


def flacs(corpus: Path) -> list[Path]:
    return sorted(corpus.rglob("*.flac"))


def rows_of(corpus: Path) -> list[dict]:
    return [
        {"id": p.stem, "audio_filepath": str(p), "duration": 1.0, "text": TEXT_OF_ID[p.stem], "speaker": p.parts[-3]}
        for p in flacs(corpus)
    ]


def write_json_lines(path: Path, rows: list[dict]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return path


def librispeech_folder(corpus: Path) -> Path:
    return corpus


def tar_gz(corpus: Path) -> Path:
    with tarfile.open(corpus.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(corpus, "LibriSpeech")
    return corpus.with_suffix(".tar.gz")


def tgz_transcripts_last(corpus: Path) -> Path:
    with tarfile.open(corpus.with_suffix(".tgz"), "w:gz") as archive:
        for path in [*reversed(flacs(corpus)), *sorted(corpus.rglob("*.txt"))]:
            archive.add(path, f"./LibriSpeech/{path.relative_to(corpus)}")
    return corpus.with_suffix(".tgz")


def tar_transcripts_first(corpus: Path) -> Path:
    with tarfile.open(corpus.with_suffix(".tar"), "w") as archive:
        for path in [*sorted(corpus.rglob("*.txt")), *flacs(corpus)]:
            archive.add(path, path.relative_to(corpus))
    return corpus.with_suffix(".tar")


def nemo_manifest(corpus: Path) -> Path:
    return write_json_lines(corpus / "nemo.json", rows_of(corpus))


def nemo_manifest_with_relative_paths(corpus: Path) -> Path:
    rows = [row | {"audio_filepath": str(Path(row["audio_filepath"]).relative_to(corpus))} for row in rows_of(corpus)]
    return write_json_lines(corpus / "nemo.jsonl.gz", rows)


def lhotse_recording(row: dict) -> dict:
    frames = soundfile.info(row["audio_filepath"]).frames
    return {
        "id": row["id"],
        "sources": [{"type": "file", "channels": [0], "source": row["audio_filepath"]}],
        "sampling_rate": SAMPLE_RATE,
        "num_samples": frames,
        "duration": frames / SAMPLE_RATE,
        "channel_ids": [0],
    }


def lhotse_supervision(row: dict) -> dict:
    duration = lhotse_recording(row)["duration"]
    keys = {"id": row["id"], "recording_id": row["id"], "start": 0.0, "duration": duration, "channel": 0}
    return keys | {"text": row["text"], "speaker": row["speaker"]}


def lhotse_supervisions(corpus: Path) -> Path:
    write_json_lines(corpus / "ls_recordings_all.jsonl.gz", [lhotse_recording(row) for row in rows_of(corpus)])
    supervisions = [lhotse_supervision(row) for row in rows_of(corpus)]
    return write_json_lines(corpus / "ls_supervisions_all.jsonl.gz", supervisions)


def lhotse_cuts(corpus: Path) -> Path:
    cuts = []
    for row in rows_of(corpus):
        recording, supervision = lhotse_recording(row), lhotse_supervision(row)
        cut = {"id": row["id"], "start": 0, "duration": recording["duration"], "channel": 0, "type": "MonoCut"}
        cuts.append(cut | {"supervisions": [supervision], "recording": recording})
    return write_json_lines(corpus / "cuts.jsonl", cuts)


def write_table(path: Path, rows: list[dict], **dialect) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]), **dialect)
        table.writeheader()
        table.writerows(rows)
    return path


def comma_separated(corpus: Path) -> Path:
    rows = [
        {"ID": row["id"], "Audio": row["audio_filepath"], "transcription": row["text"], "speaker_id": row["speaker"]}
        for row in rows_of(corpus)
    ]
    return write_table(corpus / "all.csv", rows)


def common_voice(corpus: Path) -> Path:
    """Write a table of file names without a folder; the files are in clips/."""
    folder = corpus.parent / "cv"
    (folder / "clips").mkdir(parents=True)
    for path in flacs(corpus):
        shutil.copy(path, folder / "clips")
    rows = [
        {"client_id": row["speaker"], "path": f"{row['id']}.flac", "sentence": row["text"]} for row in rows_of(corpus)
    ]
    return write_table(folder / "validated.tsv", rows, delimiter="\t")


def arrow_table(corpus: Path):
    pa = pytest.importorskip("pyarrow")
    rows = rows_of(corpus)
    audio = [{"bytes": Path(r["audio_filepath"]).read_bytes(), "path": f"{r['id']}.flac"} for r in rows]
    return pa.table(
        {
            "audio": pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "begin_time": [1250.5] * len(rows),  # times within the book, as in MLS
            "end_time": [1254.5] * len(rows),
            "text": [row["text"] for row in rows],
            "speaker_id": pa.array([row["speaker"] and int(row["speaker"]) for row in rows], pa.int64()),
        }
    )


def parquet_folder(corpus: Path) -> Path:
    table = arrow_table(corpus)
    from pyarrow import parquet

    folder = corpus.parent / "hub" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(table.slice(0, 3), folder / "part0.parquet")
    parquet.write_table(table.slice(3), folder / "part1.parquet")
    return folder.parent


def saved_to_disk(corpus: Path) -> Path:
    table = arrow_table(corpus)
    import pyarrow as pa

    folder = corpus.parent / "saved"
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    return folder


KINDS = {
    librispeech_folder: True,  # True: it names splits
    tar_gz: True,
    tgz_transcripts_last: True,
    tar_transcripts_first: True,
    nemo_manifest: False,
    nemo_manifest_with_relative_paths: False,
    lhotse_supervisions: False,
    lhotse_cuts: False,
    comma_separated: False,
    common_voice: False,
    parquet_folder: False,
    saved_to_disk: False,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("options", [(), ("--shard-size", "100KB")], ids=["files", "shards"])
def test_every_kind_of_source_gives_the_same_corpus(corpus, prepare, rows, audio_of, kind, options):
    out = prepare(kind(corpus), *options)
    row_of_id = {row["id"].rpartition("/")[2]: row for row in rows(out / "manifest.jsonl")}
    assert {key: row["text"] for key, row in row_of_id.items()} == TEXT_OF_ID
    assert all(row["speaker"] == key.split("-")[0] for key, row in row_of_id.items())
    assert {key: row.get("split") for key, row in row_of_id.items()} == {
        key: split if KINDS[kind] else None for key, split in SPLIT_OF_ID.items()
    }
    waveforms = {key.rpartition("/")[2]: waveform for key, waveform in audio_of(out / "manifest.jsonl").items()}
    for path in flacs(corpus):
        np.testing.assert_array_equal(waveforms[path.stem], soundfile.read(path, dtype="float32")[0])
        assert row_of_id[path.stem]["duration"] == soundfile.info(path).frames / SAMPLE_RATE
    assert not (out / "rejected.jsonl").exists()


TEXT_KINDS = [
    librispeech_folder,
    tar_gz,
    nemo_manifest,
    lhotse_supervisions,
    lhotse_cuts,
    comma_separated,
    common_voice,
]


@pytest.mark.parametrize("kind", TEXT_KINDS, ids=lambda kind: kind.__name__)
def test_a_byte_order_mark_is_no_part_of_the_text(corpus, prepare, rows, kind):
    for path in corpus.rglob("*.trans.txt"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    source = kind(corpus)
    for path in [source] if source.suffix in (".json", ".jsonl", ".csv", ".tsv") else source.parent.glob("ls_*.gz"):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as file:
            content = file.read()
        with opener(path, "wt", encoding="utf-8-sig") as file:
            file.write(content)
    out = prepare(source)
    assert {row["id"].rpartition("/")[2]: row["text"] for row in rows(out / "manifest.jsonl")} == TEXT_OF_ID
    assert not (out / "rejected.jsonl").exists()


@pytest.mark.parametrize("kind", [nemo_manifest, lhotse_supervisions, lhotse_cuts, parquet_folder])
@pytest.mark.parametrize(("speaker", "expected"), [(None, ""), (0, "0")])
def test_a_speaker_may_be_a_number_or_none(corpus, prepare, rows, monkeypatch, kind, speaker, expected):
    original = rows_of
    monkeypatch.setitem(globals(), "rows_of", lambda corpus: [row | {"speaker": speaker} for row in original(corpus)])
    out = prepare(kind(corpus))
    assert {row["speaker"] for row in rows(out / "manifest.jsonl")} == {expected}


@pytest.mark.parametrize("kind", [librispeech_folder, tar_gz], ids=lambda kind: kind.__name__)
def test_each_named_split_has_a_manifest_of_its_own(corpus, prepare, kind):
    out = prepare(kind(corpus))
    parts = [(out / f"{split}.jsonl").read_text() for split in sorted(SPLITS)]
    assert [part.count("\n") for part in parts] == [3, 4]
    assert (out / "manifest.jsonl").read_text() == "".join(parts)


def test_one_split_alone_keeps_its_name(corpus, prepare, rows):
    out = prepare(corpus / "dev-clean")
    assert {row["split"] for row in rows(out / "manifest.jsonl")} == {"dev-clean"}
    assert (out / "dev-clean.jsonl").read_text() == (out / "manifest.jsonl").read_text()


def test_several_sources_become_one_corpus(corpus, prepare, rows):
    out = prepare(corpus / "dev-clean", corpus / "train-clean-100")
    assert {row["id"]: row["split"] for row in rows(out / "manifest.jsonl")} == SPLIT_OF_ID


def test_any_folder_with_text_beside_audio(tmp_path, prepare, rows):
    for speaker, text in (("ann", "A B"), ("bob", "C  D\n")):  # the same name in two folders
        folder = tmp_path / "mine" / speaker
        folder.mkdir(parents=True)
        soundfile.write(folder / "001.wav", spell("A B"), SAMPLE_RATE)
        (folder / "001.txt").write_text(text)
    out = prepare(tmp_path / "mine")
    actual = [(row["id"], row["text"], row["audio_filepath"]) for row in rows(out / "manifest.jsonl")]
    assert actual == [
        ("ann/001", "A B", f"{tmp_path}/mine/ann/001.wav"),
        ("bob/001", "C D", f"{tmp_path}/mine/bob/001.wav"),
    ]


def test_saved_dataset_dict_names_its_splits(corpus, prepare, rows):
    saved_to_disk(corpus).rename(corpus.parent / "train")
    root = corpus.parent / "dict"
    root.mkdir()
    (corpus.parent / "train").rename(root / "train")
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert {row["split"] for row in rows(prepare(root) / "manifest.jsonl")} == {"train"}


def test_rows_without_id_and_name_are_numbered(corpus, prepare, rows):
    table = arrow_table(corpus)
    import pyarrow as pa
    from pyarrow import parquet

    audio = [{"bytes": row["bytes"], "path": None} for row in table["audio"].to_pylist()]
    table = table.set_column(0, "audio", pa.array(audio, table.schema.field("audio").type))
    parquet.write_table(table, corpus.parent / "all.parquet")
    ids = [row["id"] for row in rows(prepare(corpus.parent / "all.parquet") / "manifest.jsonl")]
    assert ids == [f"all-{i:08}" for i in range(len(TEXT_OF_ID))]


def test_parquet_of_the_hub_names_its_split(corpus, prepare, rows):
    table = arrow_table(corpus)
    from pyarrow import parquet

    parquet.write_table(table, corpus.parent / "train.100-00000-of-00001.parquet")
    out = prepare(corpus.parent / "train.100-00000-of-00001.parquet")
    assert {row["split"] for row in rows(out / "manifest.jsonl")} == {"train.100"}
    assert (out / "train.100.jsonl").exists()


def test_missing_pyarrow_is_named(corpus, prepare, monkeypatch):
    folder = corpus.parent / "hub"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'w2v-lightning\[hf\]'"):
        prepare(folder)


def add_member(archive: tarfile.TarFile, name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    archive.addfile(member)


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("/etc/a.txt", tarfile.REGTYPE, ""),
        ("LibriSpeech/../../a.txt", tarfile.REGTYPE, ""),
        ("LibriSpeech/link", tarfile.SYMTYPE, "/etc"),
        ("LibriSpeech/link", tarfile.SYMTYPE, "../../etc"),
        ("LibriSpeech/link", tarfile.LNKTYPE, "../a.txt"),
    ],
)
def test_archive_member_that_would_escape_is_refused(corpus, prepare, name, kind, target):
    with tarfile.open(tar_transcripts_first(corpus), "a") as archive:
        add_member(archive, name, kind=kind, target=target)
    with pytest.raises(InputError, match=f"member '{name}' leads outside the archive; do not trust"):
        prepare(corpus.with_suffix(".tar"))


def test_archive_with_a_link_that_stays_inside_is_read(corpus, prepare, rows):
    with tarfile.open(tar_transcripts_first(corpus), "a") as archive:
        add_member(archive, "dev-clean/84/link", kind=tarfile.SYMTYPE, target="../../train-clean-100")
    assert len(rows(prepare(corpus.with_suffix(".tar")) / "manifest.jsonl")) == len(TEXT_OF_ID)


@pytest.mark.parametrize("kind", [tar_gz, tar_transcripts_first], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_archive_that_was_cut_off_is_refused(corpus, prepare, kind, share):
    path = kind(corpus)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data)) // 512 * 512])
    with pytest.raises(InputError, match=r"damaged or truncated after .*; download it again"):
        prepare(path)


def test_archive_that_was_cut_off_between_two_members_is_refused(corpus, prepare):
    path = tar_transcripts_first(corpus)
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match="its end is missing"):
        prepare(path)


def test_archive_with_a_damaged_header_is_refused(tmp_path, prepare):
    write_split(tmp_path / "LibriSpeech", "dev-clean", random_texts(20))
    path = tar_transcripts_first(tmp_path / "LibriSpeech")
    with tarfile.open(path) as archive:
        place = archive.getmembers()[5].offset
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"damaged!"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged or truncated after dev-clean/19/1/19-1-0003\.flac"):
        prepare(path)


def test_memory_for_an_archive_does_not_grow_with_it(tmp_path):
    def peak_bytes(num_chapters: int) -> int:
        path = tmp_path / f"{num_chapters}.tar"
        with tarfile.open(path, "w") as archive:
            for i in range(num_chapters):
                for name in (f"{i}/1/{i}-1-0000.flac", f"{i}/1/{i}-1.trans.txt"):
                    content = f"{i}-1-0000 ONE".encode()
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        tracemalloc.start()
        assert sum(1 for _ in read_archive(path)) == num_chapters
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_bytes(10)  # so that modules loaded once are not counted below
    # The smaller of two: pathlib interns names, and the interpreter's table of interned strings may grow during one.
    assert min(peak_bytes(600) for _ in range(2)) < peak_bytes(100) + 50_000


def test_lhotse_supervisions_need_their_recordings(corpus, prepare):
    path = lhotse_supervisions(corpus)
    (corpus / "ls_recordings_all.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"ls_recordings_all\.jsonl\.gz is missing beside it"):
        prepare(path)


def test_lhotse_supervisions_need_a_name_that_leads_to_their_recordings(corpus, prepare):
    path = lhotse_supervisions(corpus).rename(corpus / "all.jsonl.gz")
    with pytest.raises(InputError, match=r'all\.jsonl\.gz .* writing "recordings" for "supervisions" in the file'):
        prepare(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.zip", "PK", r"corpus\.zip: unsupported file type\. Supported are"),
        ("corpus.json", '{"wav": "a.wav"}', "its first line is an object with wav"),
        ("corpus.jsonl", "wav\n", "its first line is not a JSON object"),
        ("corpus.csv", "path,words\n", "no column for the text; its header is path, words. Name it one of text, sent"),
        ("corpus.tsv", "text\tx\n", "no column for the path; its header is text, x. Name it one of path, audio"),
        ("folder/notes.md", "hello", "contains no audio"),
    ],
)
def test_unsupported_sources_are_refused_with_the_supported_ones(tmp_path, prepare, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        prepare(tmp_path / name.split("/")[0])
    assert "column" in message or "a NeMo manifest, a lhotse CutSet or SupervisionSet" in str(raised.value)


def test_missing_source_is_named(tmp_path, prepare):
    with pytest.raises(InputError, match=f"{tmp_path}/nothing does not exist. Supported are"):
        prepare(tmp_path / "nothing")


def table_of(folder: Path, *names: str) -> Path:
    """Write a table of audio that has these names in it, each the text of its row."""
    table = folder / "list.tsv"
    table.write_text("path\tsentence\n" + "".join(f"{name}\t{name}\n" for name in names))
    return table


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("clips/a.wav", "clips\\a.wav"),
        ("clips/a.wav", "a"),
        ("clips/a.wav", "a.mp3"),
        ("a.b.wav", "a.b"),
        ("Zoe\u0308.wav", "Zo\u00eb.wav"),
        ("Zo\u00eb.wav", "zoe\u0308.WAV"),
    ],
)
def test_paths_that_differ_a_little_are_repaired_and_said_once(tmp_path, prepare, rows, capsys, on_disk, written):
    path = tmp_path / "corpus" / on_disk
    path.parent.mkdir(parents=True)
    soundfile.write(path, spell("A B"), SAMPLE_RATE)
    out = prepare(table_of(tmp_path / "corpus", written))
    assert [row["audio_filepath"] for row in rows(out / "manifest.jsonl")] == [str(path)]
    assert capsys.readouterr().out.count(f"such as {path} for {written!r}") == 1


def test_a_repair_that_fits_several_files_is_none_and_the_path_is_named(tmp_path, prepare, rows, capsys):
    for name in ("a.wav", "a.flac", "b.wav"):
        soundfile.write(tmp_path / name, spell("A B"), SAMPLE_RATE)
    out = prepare(table_of(tmp_path, "a.mp3", "b.wav"))
    (rejected,) = rows(out / "rejected.jsonl")
    detail = f"{tmp_path}/a.mp3: there is no such file, and several fit: {tmp_path}/a.flac, {tmp_path}/a.wav"
    assert (rejected["reason"], rejected["detail"]) == ("no audio file", detail)
    assert f"  {detail}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (['"""No,"" she said"', "plain"], ['"No," she said', "plain"]),  # as pandas writes it
        (['"No," she said', '"""No,"" she said"'], ['"No," she said', '"""No,"" she said"']),  # not the whole file
        (['"Hello"', 'say "hi"'], ['"Hello"', 'say "hi"']),  # as Common Voice does
    ],
)
def test_a_tsv_file_is_unquoted_if_all_of_it_is_quoted_by_csv(tmp_path, prepare, rows, cells, texts):
    for number in range(len(cells)):
        soundfile.write(tmp_path / f"{number}.wav", spell("A B"), SAMPLE_RATE)
    lines = ["path\tsentence", *(f"{number}.wav\t{cell}" for number, cell in enumerate(cells))]
    (tmp_path / "validated.tsv").write_text("\n".join(lines) + "\n")
    out = prepare(tmp_path / "validated.tsv")
    assert [row["text"] for row in rows(out / "manifest.jsonl")] == texts


@pytest.mark.parametrize("rest", ["c.wav,three\n", 'c.wav,"three"\n'])
def test_a_quotation_mark_that_nothing_closes_is_named_with_its_line(tmp_path, prepare, rest):
    (tmp_path / "list.csv").write_text(f'path,text\na.wav,one\nb.wav,"two\n{rest}')
    with pytest.raises(InputError, match=r"list\.csv:3: invalid table: .* close the quotation mark"):
        prepare(tmp_path / "list.csv")


def test_a_split_column_makes_splits(tmp_path, prepare, rows):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", spell("A B"), SAMPLE_RATE)
    (tmp_path / "list.csv").write_text("path,text,split\na.wav,A,train\nb.wav,B,test\n")
    out = prepare(tmp_path / "list.csv")
    assert [row["text"] for row in rows(out / "test.jsonl")] == ["B"]
