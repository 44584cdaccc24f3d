import io
import logging
import shutil
import struct

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE

from w2v_lightning.data import ffmpeg
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import decode, read_audio
from w2v_lightning.data.opening import opened
from w2v_lightning.errors import InputError

MEDIA = {
    "AAC or ALAC": b"\x00\x00\x00\x1cftypM4A ",
    "WebM or Matroska": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81",
    "AMR": b"#!AMR\n<\xd6y\x1a",
    "WMA": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",
}


def noise(seconds: float, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (round(seconds * SAMPLE_RATE), channels)).astype(np.float32)


def encoded(samples: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, **options)
    return file.getvalue()


def mp3(seconds: float = 5) -> bytes:
    """Return MP3 of variable bit rate that begins with a second of silence, with the header of Xing."""
    samples = np.concatenate([np.zeros((SAMPLE_RATE, 1), np.float32), noise(seconds - 1)])
    return encoded(samples, format="MP3", bitrate_mode="VARIABLE")


def without_header(data: bytes) -> bytes:
    return data.replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)


def wav(samples: bytes, form: bytes = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16), size: int = -1) -> bytes:
    size = len(samples) if size < 0 else size
    return b"".join(
        [b"RIFF", struct.pack("<I", min(36 + size, 2**32 - 1)), b"WAVEfmt ", struct.pack("<I", len(form)), form]
        + [b"data", struct.pack("<I", size), samples]
    )


def seconds(data: bytes) -> float:
    with opened(io.BytesIO(data), "x") as sound:
        assert sound.frames == len(sound.read())
        return sound.frames / sound.samplerate


def test_mp3_without_a_header_is_counted_by_decoding():
    data = without_header(mp3())
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        assert abs(sound.frames / sound.samplerate - 5) > 0.5, "libsndfile must guess wrong for this test to be one"
    assert seconds(data) == pytest.approx(5, abs=0.2)
    assert len(decode(data, AudioRef("x.mp3"))) / SAMPLE_RATE == pytest.approx(5, abs=0.2)


def test_joined_mp3_is_decoded_to_its_end():
    assert seconds(mp3(2)) == pytest.approx(2, abs=0.01)
    assert seconds(mp3(2) + mp3(3)) == pytest.approx(5, abs=0.3)


def test_truncated_mp3_with_a_header_is_named():
    with pytest.raises(InputError, match=r"^x\.mp3: truncated: its header says about 5\.\d+ s of audio, 2\.\d+ s"):
        decode(mp3()[: len(mp3()) // 2], AudioRef("x.mp3"))


def test_segment_of_mp3_is_read_where_libsndfile_saw_no_audio(tmp_path):
    (tmp_path / "a.mp3").write_bytes(without_header(mp3()))
    whole_T = read_audio(AudioRef(str(tmp_path / "a.mp3")))
    segment_T = read_audio(AudioRef(str(tmp_path / "a.mp3"), start_s=3.0, duration_s=1.5))
    np.testing.assert_array_equal(segment_T, whole_T[3 * SAMPLE_RATE : round(4.5 * SAMPLE_RATE)])


def test_mp3_in_wav_is_decoded_and_its_truncation_named(capfd):
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, SAMPLE_RATE, 4000, 1, 0, 12, 1, 2, 0, 1, 0)
    content = without_header(mp3())
    assert seconds(wav(content, form)) == pytest.approx(5, abs=0.2)
    with pytest.raises(InputError, match=r"truncated: its header says"):
        decode(wav(content[:-3000], form, size=len(content)), AudioRef("x.wav"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_followed(subtype):
    streams = [encoded(noise(length), format="OGG", subtype=subtype) for length in (1, 2)]
    assert seconds(b"".join(streams)) == pytest.approx(3, abs=0.01)


def test_flac_from_a_pipe_gives_its_samples():
    data = bytearray(encoded(noise(1, 2), format="FLAC", subtype="PCM_24"))
    expected_TC, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with opened(io.BytesIO(bytes(data)), "x") as sound:
        np.testing.assert_array_equal(sound.read(dtype="float32"), expected_TC)


@pytest.mark.parametrize("size", [0, 2**32 - 1, 0x7FFFF000])
def test_wav_of_unknown_size_goes_to_its_end(size):
    samples = (noise(1)[:, 0] * 32768).astype("<i2")
    np.testing.assert_array_equal(decode(wav(samples.tobytes(), size=size), AudioRef("x")), samples / np.float32(2**15))


def test_wav_with_two_chunks_of_samples_has_both():
    samples = (noise(1)[:, 0] * 32768).astype("<i2").tobytes()
    both = wav(samples[:16000]) + b"data" + struct.pack("<I", len(samples) - 16000) + samples[16000:]
    assert seconds(both) == 1


def test_wav_without_samples_stays_empty():
    with pytest.raises(InputError, match=r"^x: contains no audio\.$"):
        decode(wav(b""), AudioRef("x"))


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "GSM610"), ("AU", "G721_32")])
def test_formats_without_seeking_are_read_whole_and_by_segment(tmp_path, format, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1), 8000, format=format, subtype=subtype)
    assert len(read_audio(AudioRef(str(path)))) / SAMPLE_RATE == pytest.approx(2, abs=0.05)
    assert len(read_audio(AudioRef(str(path), start_s=1.0, duration_s=0.5))) == SAMPLE_RATE // 2


@pytest.mark.parametrize("error", [ValueError("odd"), RuntimeError(), KeyError("x"), OSError(5, "Input/output error")])
def test_every_error_of_a_decoder_names_the_file(error):
    content, message = io.BytesIO(encoded(noise(0.1), format="WAV")), r"^x\.wav: cannot be read as audio: \S.*\.$"
    with pytest.raises(InputError, match=message), opened(content, "x.wav"):
        raise error


@pytest.mark.parametrize("kind", MEDIA)
def test_without_ffmpeg_the_format_is_named_with_the_command(tmp_path, monkeypatch, capfd, kind):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "b.mp3"
    path.write_bytes(MEDIA[kind] + bytes(5000))
    with pytest.raises(InputError, match=rf'{kind}.*which needs ffmpeg.*ffmpeg -i "{path}" "{tmp_path}/b\.flac"'):
        read_audio(AudioRef(str(path)))
    assert capfd.readouterr().err == ""


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """Put a command `ffmpeg` on PATH that runs the given line of a shell."""

    def install(line: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "ffmpeg").write_text(f"#!/bin/sh\n{line}\n")
        (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        assert shutil.which("ffmpeg") == str(folder / "ffmpeg")
        ffmpeg._announce.cache_clear()

    return install


def test_ffmpeg_reads_what_libsndfile_does_not_and_is_said_once(tmp_path, fake_ffmpeg, caplog):
    samples = (noise(1)[:, 0] * 32768).astype("<i2")
    (tmp_path / "out.wav").write_bytes(wav(samples.tobytes(), size=2**32 - 1))
    fake_ffmpeg(f"cat {tmp_path / 'out.wav'}")
    data = MEDIA["AAC or ALAC"] + bytes(100)
    (tmp_path / "a.m4a").write_bytes(data)
    with caplog.at_level(logging.INFO):
        for waveform_T in (decode(data, AudioRef("x")), read_audio(AudioRef(str(tmp_path / "a.m4a")))):
            np.testing.assert_array_equal(waveform_T, samples / np.float32(2**15))
    assert caplog.text.count("through ffmpeg") == 1


def test_error_of_ffmpeg_is_that_of_the_file(fake_ffmpeg):
    fake_ffmpeg("echo moov atom not found >&2; exit 1")
    with pytest.raises(InputError, match=r"^x\.m4a: cannot be read as audio: ffmpeg: moov atom not found\.$"):
        decode(MEDIA["AAC or ALAC"], AudioRef("x.m4a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "an HTML page.*download"),
        (b"", "an empty file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
    ],
)
def test_files_without_audio_are_named(tmp_path, data, message):
    (tmp_path / "a.mp3").write_bytes(data)
    with pytest.raises(InputError, match=f"it is .*{message}"):
        read_audio(AudioRef(str(tmp_path / "a.mp3")))


def test_channel_is_decoded_alone():
    samples_TC = noise(1, 2)
    data = encoded(samples_TC, format="WAV", subtype="FLOAT")
    for channel in (0, 1):
        np.testing.assert_array_equal(decode(data, AudioRef("x", channel=channel)), samples_TC[:, channel])
    flac_T = decode(encoded(samples_TC, format="FLAC"), AudioRef("x", channel=1))
    np.testing.assert_allclose(flac_T, samples_TC[:, 1], atol=1e-4)
    with pytest.raises(InputError, match="has no channel 2, counted from 0: it has 2"):
        decode(data, AudioRef("x", channel=2))
