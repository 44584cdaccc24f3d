"""Ids that repeat, and what is a duplicate."""

from collections.abc import Iterable
from time import process_time

import pytest

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.prepare.identity import unique
from w2v_lightning.prepare.utterance import Rejected, Utterance


def utterance(audio: AudioRef | bytes, utterance_id: str = "a", **fields: str) -> Utterance:
    return Utterance(utterance_id, "text", audio, "/corpus/list.tsv", **fields)


def ids(items: Iterable[Utterance]) -> list[str | None]:
    """Return the ids; None for what is left out."""
    return [None if isinstance(item, Rejected) else item.id for item in unique(items)]


@pytest.mark.parametrize(
    "other",
    [
        AudioRef("/x/b.wav"),
        AudioRef("/x/a.wav", channel=1),
        AudioRef("/x/a.wav", start_s=1.0, duration_s=2.0),
        AudioRef("/x/a.wav", byte_offset=512, num_bytes=10),
        b"audio",
    ],
)
def test_other_audio_of_the_same_id_is_kept(other):
    assert ids([utterance(AudioRef("/x/a.wav")), utterance(other)]) == ["a", "corpus-list-a"]


@pytest.mark.parametrize("again", ["/x/a.wav", "/x/y/../a.wav"])
def test_the_same_audio_is_a_duplicate_whatever_its_row_says_of_the_duration(again):
    assert ids([utterance(AudioRef("/x/a.wav")), utterance(AudioRef(again, duration_s=2.0))]) == ["a", None]
    assert ids([utterance(b"audio"), utterance(b"audio")]) == ["a", None]


def test_the_split_comes_first_then_the_source_then_a_number():
    repeated = [utterance(AudioRef(f"/x/{i}.wav"), split="dev" if i == 1 else "") for i in range(5)]
    repeated.append(utterance(AudioRef("/x/5.wav"), "a-2"))
    assert ids(repeated) == ["a", "dev-a", "corpus-list-a", "a-2", "a-3", "corpus-list-a-2"]
    assert ids(repeated) == ids(repeated)


def test_an_id_that_all_have_takes_no_quadratic_time():
    def seconds(number: int) -> float:
        start = process_time()
        assert len(set(ids(utterance(AudioRef(f"/x/{i}.wav"), "audio") for i in range(number)))) == number
        return process_time() - start

    assert seconds(20_000) < 5  # 200,000,000 look-ups otherwise
