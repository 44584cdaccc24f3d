"""Near misses of paths in tables: repaired where one file fits, refused where several do, each folder listed once."""

import os
import unicodedata

import pytest

from w2v_lightning.prepare.audio_paths import AmbiguousPathError, AudioPaths

NFC, NFD = "café", unicodedata.normalize("NFD", "café")


def paths_beside(folder, *names: str) -> AudioPaths:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return AudioPaths(folder / "list.tsv")


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        ("wavs/a.wav", "wavs\\a.wav"),
        ("clips/a.mp3", "a"),
        ("wavs/a.wav", "wavs/a.sph"),
        (f"{NFD}/{NFD}.wav", f"{NFC}/{NFC}.wav"),
        (f"{NFC}.wav", f"{NFD}.wav"),
        ("Wavs/A.WAV", "wavs/a.wav"),
        ("v1.0_take.wav", "v1.0_take"),
        ("a.wav", "wavs/a.wav"),
        ("wavs/a.wav", "/home/me/corpus/wavs/a.wav"),
        ("clips/a.mp3", "cv-corpus/pl/clips/a.mp3"),
        ("wavs/a.wav", "C:\\data\\wavs\\a.wav"),
        ("wavs/A.wav", "D:\\data\\Wavs\\a.flac"),
    ],
)
def test_a_near_miss_is_repaired_and_said(tmp_path, capsys, on_disk, written):
    paths = paths_beside(tmp_path, on_disk)
    assert os.path.normpath(paths.find(written)) == str(tmp_path / on_disk)
    paths.report()
    assert f"{tmp_path}/list.tsv: " in (said := capsys.readouterr().out)
    assert f" for 1 paths, such as {tmp_path}" in said


def test_repairs_are_counted_and_said_once_per_kind(tmp_path, capsys):
    paths = paths_beside(tmp_path, *(f"wavs/{i}.wav" for i in range(20)))
    for i in range(20):
        paths.find(f"wavs\\{i}.wav" if i % 2 else f"wavs/{i}.mp3")
    paths.report()
    assert [line.split(", such")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{tmp_path}/list.tsv: names are matched without extension, letter case or Unicode form, for 10 paths",
        f"{tmp_path}/list.tsv: backslashes are read as slashes, for 10 paths",
    ]


def test_nothing_is_said_of_paths_that_are_right(tmp_path, capsys):
    paths = paths_beside(tmp_path, "wavs/a.wav", "clips/b.mp3")
    assert [paths.find("wavs/a.wav"), paths.find("b.mp3")] == [f"{tmp_path}/wavs/a.wav", f"{tmp_path}/clips/b.mp3"]
    paths.report()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("written", ["a.ogg", "a", "A.wav"])
def test_several_files_that_fit_are_named(tmp_path, written):
    paths = paths_beside(tmp_path, "a.wav", "a.WAV", "a.mp3")
    with pytest.raises(AmbiguousPathError, match=rf"{tmp_path}/{written}: .* several fit: {tmp_path}/a\.WAV, "):
        paths.find(written)


def test_folders_are_left_out_for_one_prefix_only_so_that_no_file_stands_for_two(tmp_path):
    paths = paths_beside(tmp_path, "001.wav")
    assert paths.find("ann/001.wav") == f"{tmp_path}/001.wav"
    assert paths.find("bob/001.wav") == f"{tmp_path}/bob/001.wav"  # it is another recording, and is not there


def test_folders_that_exist_are_not_left_out(tmp_path):
    paths = paths_beside(tmp_path, "001.wav", "ann/002.wav")
    assert paths.find("ann/001.wav") == f"{tmp_path}/ann/001.wav"


def test_a_file_of_another_name_is_not_taken(tmp_path):
    paths = paths_beside(tmp_path, "v1.wav", "a.txt")
    assert paths.find("v1.0_take") == f"{tmp_path}/v1.0_take"
    assert paths.find("a.wav") == f"{tmp_path}/a.wav"


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    paths = paths_beside(tmp_path, *(f"clips/{i}.mp3" for i in range(50)))
    listed = []
    list_folder = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(str(folder)) or list_folder(folder))
    assert [paths.find(f"{i}.wav") for i in range(50)] == [f"{tmp_path}/clips/{i}.mp3" for i in range(50)]
    assert sorted(listed) == [str(tmp_path), f"{tmp_path}/clips"]
