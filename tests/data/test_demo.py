import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from w2v_lightning.data import demo
from w2v_lightning.errors import InputError

ONE_PER_CHAPTER = {"train-demo": 1, "dev-demo": 1}

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed"
)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def start_making(root: Path) -> subprocess.Popen:
    """Start a new process that makes the small corpus at `root`."""
    code = (
        "import sys; from pathlib import Path; from w2v_lightning.data import demo;"
        f"demo._make_whole(Path(sys.argv[1]), {ONE_PER_CHAPTER})"
    )
    package_parent = Path(demo.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], env=os.environ | {"PYTHONPATH": str(package_parent)}
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache") / "corpus"
    demo._make_whole(root, ONE_PER_CHAPTER)
    return root


@needs_espeak
def test_layout_is_that_of_librispeech_and_transcripts_agree_with_recordings(corpus):
    tables = sorted(corpus.glob("*/*/*/*.trans.txt"))
    assert {path.relative_to(corpus).parts[0] for path in tables} == {"train-demo", "dev-demo"}
    named = set()
    for table in tables:
        speaker, chapter = table.parts[-3:-1]
        assert table.name == f"{speaker}-{chapter}.trans.txt"
        for index, line in enumerate(table.read_text().splitlines()):
            name, transcript = line.split(" ", 1)
            assert name == f"{speaker}-{chapter}-{index:04d}"
            assert set(transcript) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")
            assert transcript == " ".join(transcript.split())
            named.add(table.with_name(f"{name}.flac"))
    assert named == set(corpus.rglob("*.flac"))


@needs_espeak
def test_recordings_are_audible_16_khz_mono_flac_of_16_bits(corpus):
    for path in corpus.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert 0.4 < info.duration < 8
        loudness = abs(soundfile.read(path)[0])
        assert loudness.max() > 0.05, f"{path.name} is silent"
        assert (loudness > 0.999).mean() < 0.002, f"{path.name} is clipped"


def test_validation_has_speakers_accents_and_variants_of_its_own():
    train = [chapter for chapter in demo._chapters() if chapter.split == "train-demo"]
    dev = [chapter for chapter in demo._chapters() if chapter.split == "dev-demo"]
    assert train
    assert dev
    assert not {c.speaker_id for c in train} & {c.speaker_id for c in dev}
    for part in (0, 1):
        assert not {c.voice.split("+")[part] for c in train} & {c.voice.split("+")[part] for c in dev}


@pytest.mark.slow
@needs_espeak
def test_racing_processes_leave_one_corpus_with_the_same_bytes_as_any_other(corpus, tmp_path):
    racers = [start_making(tmp_path / "corpus") for _ in range(2)]
    assert [racer.wait(timeout=120) for racer in racers] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert files(tmp_path / "corpus") == files(corpus)


@needs_espeak
def test_what_espeak_said_before_does_not_change_the_corpus(corpus, tmp_path):
    demo._make_whole(tmp_path / "again", ONE_PER_CHAPTER)
    assert files(tmp_path / "again") == files(corpus)


def test_corpus_is_made_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(demo, "_speak_corpus", lambda root, _: (made.append(root), root.mkdir()))
    assert demo.make_demo_corpus(tmp_path) == demo.make_demo_corpus(str(tmp_path))
    assert len(made) == 1


def test_loser_of_a_race_keeps_the_winners_corpus(tmp_path, monkeypatch):
    root = tmp_path / "corpus"

    def speak_while_another_process_finishes(own: Path, _: dict) -> None:
        for folder, text in ((own, "loser"), (root, "winner")):
            folder.mkdir()
            (folder / "text").write_text(text)

    monkeypatch.setattr(demo, "_speak_corpus", speak_while_another_process_finishes)
    demo._make_whole(root, ONE_PER_CHAPTER)
    assert (root / "text").read_text() == "winner"
    assert list(tmp_path.iterdir()) == [root]


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def speak_and_be_interrupted(own: Path, _: dict) -> None:
        own.mkdir()
        (own / "text").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_speak_corpus", speak_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.make_demo_corpus(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_espeak_says_what_to_install_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(InputError, match=r"pip install 'w2v-lightning\[demo\]'"):
        demo.make_demo_corpus(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_default_place_is_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "_speak_corpus", lambda root, _: root.mkdir())
    assert demo.make_demo_corpus().parent == tmp_path
