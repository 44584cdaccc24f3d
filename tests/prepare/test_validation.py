"""prepare --validation: a split by speaker or recording where the sources have none."""

import json

import pytest
from layouts import write_sound, write_text

from w2v_lightning.errors import InputError
from w2v_lightning.prepare.command import main
from w2v_lightning.prepare.options import PrepareOptions


@pytest.fixture
def table(tmp_path):
    """Function that writes a table of (speaker, recording, split, seconds), and returns its path."""

    def write(*cells: tuple[str, str, str, float], name: str = "list.csv"):
        lines = ["path,text,speaker,split"]
        for i, (speaker, folder, split, seconds) in enumerate(cells):
            path = f"{folder}/{i}.wav"
            write_sound(tmp_path / path, seconds)
            lines.append(f"{path},text {i},{speaker},{split}")
        return write_text(tmp_path / name, "\n".join(lines) + "\n")

    return write


def many(split: str = "", speakers: int = 40) -> list[tuple[str, str, str, float]]:
    return [(f"s{i}", "wavs", split, 0.1) for i in range(speakers) for _ in range(3)]


def keys(rows: list[dict], key: str) -> set[str]:
    return {row[key] for row in rows}


@pytest.mark.parametrize("options", [(), ("--shard_size", "20KB")], ids=["files", "shards"])
def test_whole_speakers_of_about_the_share(table, prepare, rows, capsys, options):
    out = prepare(table(*many()), "--validation", "10%", *options)
    train, validation = rows(out / "train.jsonl"), rows(out / "validation.jsonl")
    assert keys(train, "speaker").isdisjoint(keys(validation, "speaker"))
    assert (len(train), len(validation)) == (108, 12)
    assert rows(out / "manifest.jsonl") == [*train, *validation]
    assert (keys(train, "split"), keys(validation, "split")) == ({"train"}, {"validation"})
    assert list(train[0])[:6] == ["id", "audio_filepath", "duration", "text", "speaker", "split"]
    assert "Split validation: 4 of 40 speakers, 10.0 % of the audio.\n" in capsys.readouterr().out


def test_the_choice_does_not_depend_on_the_order_and_is_said_again(table, prepare, rows, capsys):
    cells = many()
    first = prepare(table(*cells), "--validation", "10%", out="first")
    second = prepare(table(*reversed(cells), name="reversed.csv"), "--validation", "10", out="second")
    speakers = keys(rows(first / "validation.jsonl"), "speaker")
    assert speakers == keys(rows(second / "validation.jsonl"), "speaker")
    capsys.readouterr()
    prepare(table(*cells, name="reversed.csv"), "--validation", "10", out="third")
    said = capsys.readouterr().out.replace("third", "first")
    assert "Split validation: 4 of 40 speakers" in said


def test_a_second_run_does_nothing_and_another_share_is_another_run(table, prepare, capsys):
    path = table(*many())
    prepare(path, "--validation", "10%")
    prepare(path, "--validation", "10.0")
    assert "is complete; nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"another run: --validation was 10\.0, is now None"):
        prepare(path)


def test_whole_recordings_where_no_speaker_is_known(tmp_path, prepare, rows, capsys):
    lines = ["path,text,start,end"]
    for i in range(20):
        write_sound(tmp_path / f"{i}.wav", 1.0)
        lines += [f"{i}.wav,a,0,0.4", f"{i}.wav,b,0.4,0.8"]
    out = prepare(write_text(tmp_path / "list.csv", "\n".join(lines) + "\n"), "--validation", "10%", "--segment")
    validation = keys(rows(out / "validation.jsonl"), "id")
    assert len(validation) == 4
    assert {f"{name.split('-')[0]}-{start}" for name in validation for start in ("00000000", "00000400")} == validation
    assert "2 of 20 recordings (no speakers to tell apart), 10.0 % of the audio" in capsys.readouterr().out


def test_one_speaker_is_divided_by_recording(table, prepare, rows, capsys):
    out = prepare(table(*[("ann", "wavs", "", 0.1)] * 20), "--validation", "10%")
    assert len(rows(out / "validation.jsonl")) == 2
    assert "2 of 20 recordings (no speakers to tell apart)" in capsys.readouterr().out


def test_one_recording_is_divided_by_utterance(tmp_path, prepare, capsys):
    write_sound(tmp_path / "a.wav", 2.0)
    lines = ["path,text,start,end", *(f"a.wav,a,{i / 10},{(i + 1) / 10}" for i in range(20))]
    prepare(write_text(tmp_path / "list.csv", "\n".join(lines) + "\n"), "--validation", "10%")
    assert "2 of 20 utterances (of one recording), 10.0 % of the audio" in capsys.readouterr().out


def test_few_speakers_give_the_one_with_least_audio(table, prepare, rows):
    out = prepare(table(("a", "w", "", 0.5), ("b", "w", "", 0.2), ("c", "w", "", 0.5)), "--validation", "1%")
    assert keys(rows(out / "validation.jsonl"), "speaker") == {"b"}


def test_test_splits_are_not_divided(table, prepare, rows):
    out = prepare(table(*many("train"), *many("test")), "--validation", "10%")
    assert {name: len(rows(out / f"{name}.jsonl")) for name in ("train", "validation", "test")} == {
        "train": 108,
        "validation": 12,
        "test": 120,
    }


def test_a_validation_split_that_exists_is_kept(table, prepare, rows, capsys):
    out = prepare(table(*many("train"), *many("dev", 2)), "--validation", "10%")
    assert len(rows(out / "dev.jsonl")) == 6
    assert not (out / "validation.jsonl").exists()
    assert "--validation is not used: the sources have a validation split, dev.\n" in capsys.readouterr().out


def test_statistics_are_those_of_the_new_splits(table, prepare, rows):
    out = prepare(table(*many()), "--validation", "10%")
    stats = json.loads((out / "stats.json").read_text())
    assert {split: counts["utterances"] for split, counts in stats["splits"].items()} == {
        "train": 108,
        "validation": 12,
    }
    assert sum(counts["bytes"] for counts in stats["splits"].values()) == stats["bytes"]
    assert stats["splits"]["validation"]["speakers"] == 4


def test_one_utterance_cannot_be_divided(table, prepare):
    with pytest.raises(InputError, match="--validation: there is only one utterance"):
        prepare(table(("a", "w", "", 0.5)), "--validation", "5%")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--validation", "many"), "--validation is 'many': must be a percentage such as 5%"),
        (("--validation", "0"), "--validation is 0: must be above 0% and at most 50%"),
        (("--validation", "60%"), "--validation is 60%: must be above 0% and at most 50%"),
        (("--max_rejected", "-1"), "--max_rejected is '-1': must be a percentage such as 5%"),
    ],
)
def test_wrong_percentages_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        main(["a", "--out", "b", *option])


@pytest.mark.parametrize("value", ["5%", "5", "5.0 %", 5, 5.0])
def test_percentages_are_read_as_people_write_them(value, tmp_path):
    options = PrepareOptions([tmp_path], tmp_path, validation=value, max_rejected=value)
    assert (options.recipe(is_packed=False).validation, options.max_rejected_percentage) == (5, 5)
