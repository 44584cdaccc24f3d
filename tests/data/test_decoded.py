"""Files that were decoded as a whole, for many segments of one recording."""

import threading

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE

from w2v_lightning.data import opening
from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import load, read_audio
from w2v_lightning.data.decoded import DecodedFiles
from w2v_lightning.data.opening import opened
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.errors import InputError


@pytest.fixture
def decoded(monkeypatch):
    """Number of bytes of each MP3 that is decoded."""
    calls, decode = [], opening.mp3.decode
    monkeypatch.setattr(opening.mp3, "decode", lambda data: calls.append(len(data)) or decode(data))
    return calls


def write(path, seconds=3.0):
    noise_T = np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE))
    soundfile.write(path, noise_T, SAMPLE_RATE)
    return str(path)


@pytest.mark.parametrize("suffix", [".mp3", ".wav"])
def test_segments_of_one_recording_decode_it_once(tmp_path, decoded, suffix):
    path = write(tmp_path / f"a{suffix}")
    whole_T, reader = read_audio(AudioRef(path)), AudioReader()
    decoded.clear()
    segments = [AudioRef(path, start_s=start_s, duration_s=0.5) for start_s in (1.0, 0.0, 2.25)]
    for waveform_T, segment in zip(load(segments, reader) + load(segments, reader), segments * 2, strict=True):
        start = round(segment.start_s * SAMPLE_RATE)
        np.testing.assert_array_equal(waveform_T, whole_T[start : start + SAMPLE_RATE // 2])
    assert len(decoded) == (suffix == ".mp3")


def test_a_file_that_changes_is_decoded_again(tmp_path, decoded):
    kept = DecodedFiles()
    for seconds in (2.0, 3.0):
        path = write(tmp_path / "a.mp3", seconds)
        with opened(path, path, kept) as sound:
            assert sound.frames == pytest.approx(seconds * SAMPLE_RATE, abs=1)
    assert len(decoded) == 2


def test_the_oldest_file_is_dropped(tmp_path, decoded):
    paths = [write(tmp_path / name) for name in ("a.mp3", "b.mp3", "c.mp3")]
    kept = DecodedFiles(max_files=2)
    for i in (0, 1, 0, 1, 2, 1, 0):
        with opened(paths[i], paths[i], kept):
            pass
    assert len(decoded) == 4


def test_threads_wait_for_the_one_that_decodes(tmp_path, decoded):
    path, kept = write(tmp_path / "a.mp3"), DecodedFiles()

    def run():
        with opened(path, path, kept) as sound:
            assert len(sound.read()) == sound.frames

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1


def test_an_error_is_raised_for_every_segment(tmp_path):
    path, kept = tmp_path / "a.mp3", DecodedFiles()
    path.write_bytes(b"\xff\xfb\x90\x00" + bytes(40))
    for _ in range(2):
        with pytest.raises(InputError, match=r"a\.mp3: cannot be read as audio"), opened(path, "a.mp3", kept):
            pass
