"""Truncated files, and complete ones that look truncated."""

import io
import struct

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE

from w2v_lightning.data.sound import truncation

NOISE = np.random.default_rng(0).normal(0, 0.1, 3 * SAMPLE_RATE)
LIST = (
    b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"
)  # as written by ffmpeg


def encoded(kind: str = "WAV", subtype: str = "PCM_16", num_samples: int = len(NOISE)) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE[:num_samples], SAMPLE_RATE, format=kind, subtype=subtype)
    return file.getvalue()


def shortage(data: bytes, **options) -> str:
    source = io.BytesIO(data)
    with soundfile.SoundFile(source) as sound:
        return truncation(sound, source, **options)


def wav_with(riff_bytes: int, data_bytes: int) -> bytes:
    wav = encoded()
    assert wav[36:40] == b"data"
    return wav[:4] + struct.pack("<I", riff_bytes) + wav[8:40] + struct.pack("<I", data_bytes) + wav[44:]


@pytest.mark.parametrize("list_chunk", [b"", LIST], ids=["", "after a LIST"])
@pytest.mark.parametrize(
    "kind", [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "PCM_24"), ("WAVEX", "PCM_16"), ("WAV", "ULAW")], ids="-".join
)
def test_wav_that_was_cut_off_is_held_against_its_header(kind, list_chunk):
    wav = encoded(*kind)
    wav = wav[:12] + list_chunk + wav[12:]
    for cut in (wav[: len(wav) // 2], wav[:-2000]):
        actual_s = soundfile.info(io.BytesIO(cut)).duration
        expected = f"its header says 3.000 s of audio, {actual_s:.3f} s are there"
        assert (shortage(cut), shortage(cut, may_be_unclosed=True)) == (expected, expected)
    assert shortage(wav) == ""


def test_aiff_that_was_cut_off_is_held_against_its_header():
    aiff = encoded("AIFF")
    assert shortage(aiff) == ""
    assert shortage(aiff[: len(aiff) // 2]).startswith("its header says 3.000 s of audio, 1.49")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_was_cut_off_is_found_wherever_that_was(subtype):
    ogg = encoded("OGG", subtype)
    last_page = ogg.rindex(b"OggS")
    for end in (last_page - 100, last_page + 4, last_page + 26, last_page + 27, last_page + 30, len(ogg) - 1):
        assert shortage(ogg[:end], may_be_unclosed=True).startswith("it ends in the middle of a page, ")
    assert shortage(ogg) == ""


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_ends_between_two_pages_may_not_have_been_closed(tmp_path, subtype):
    ogg = encoded("OGG", subtype)
    (tmp_path / "a.ogg").write_bytes(ogg[: ogg.rindex(b"OggS")])
    with soundfile.SoundFile(tmp_path / "a.ogg") as sound:
        actual_s = sound.frames / SAMPLE_RATE
        expected = f"it has no end-of-stream page, {actual_s:.3f} s of audio are there"
        assert truncation(sound, tmp_path / "a.ogg") == expected
        assert truncation(sound, tmp_path / "a.ogg", may_be_unclosed=True) == ""


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_chain_of_ogg_streams_is_whole(subtype):
    first, second = encoded("OGG", subtype), encoded("OGG", subtype, SAMPLE_RATE)
    assert shortage(first + second) == ""
    assert "in the middle of a page" in shortage((first + second)[:-1])
    assert shortage(first + bytes(1000)) == ""


@pytest.mark.parametrize(
    "data_bytes", [2**32 - 1, 2**32 - 45, 2**31, 2**31 - 1, 0x7FFFF000, 0x7FFFEFDC, 0x7F000000], ids=hex
)
def test_wav_from_a_pipe_does_not_say_how_long_it_is(data_bytes):
    assert shortage(wav_with(min(data_bytes + 36, 2**32 - 1), data_bytes)) == ""


@pytest.mark.parametrize(
    "wav",
    [
        wav_with(8, 0),  # not closed: libsndfile reads to the end
        wav_with(len(encoded()) - 8, len(encoded()) - 8),  # the header counts itself
        encoded(subtype="PCM_U8", num_samples=16_001),
        encoded(subtype="PCM_U8", num_samples=16_001)[:-1],  # without the padding byte
        encoded() + LIST,
        encoded() + LIST[:-5],  # the samples are complete
        encoded("RF64"),
    ],
    ids=["not closed", "counts itself", "odd", "odd and not padded", "LIST after", "LIST truncated", "RF64"],
)
def test_wav_that_only_looks_cut_off_is_whole(wav):
    assert shortage(wav) == ""
