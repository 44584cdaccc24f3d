import io

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, spell

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import as_float, decode, load, read_audio
from w2v_lightning.data.reader import AudioReader
from w2v_lightning.errors import InputError


def tone(frequency_hz: float, duration_s: float, sample_rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(duration_s * sample_rate)) / sample_rate)


def test_audio_comes_as_float32_of_the_recorded_level(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440, 1, SAMPLE_RATE), SAMPLE_RATE)
    waveform_T = read_audio(AudioRef(str(path)))
    assert waveform_T.dtype == np.float32
    np.testing.assert_allclose(waveform_T, tone(440, 1, SAMPLE_RATE), atol=1 / 2**15)


def test_stereo_is_averaged(tmp_path):
    left, right = tone(440, 0.5, SAMPLE_RATE), tone(1000, 0.5, SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE)
    np.testing.assert_allclose(read_audio(AudioRef(str(tmp_path / "a.wav"))), (left + right) / 2, atol=1 / 2**15)


@pytest.mark.parametrize("sample_rate", [8_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_sample_rates_keep_pitch_level_and_duration(tmp_path, sample_rate, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(440, 0.75, sample_rate)] * channels, axis=1), sample_rate)
    waveform_T = read_audio(AudioRef(str(path)))
    assert abs(len(waveform_T) - 0.75 * SAMPLE_RATE) <= 1
    inner = slice(500, 11_500)  # the ends ring
    np.testing.assert_allclose(waveform_T[inner], tone(440, 0.75, SAMPLE_RATE)[inner], atol=0.01)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot be read as audio"),
        (lambda path: path.write_text("no audio"), "cannot be read as audio"),
        (lambda path: soundfile.write(path, np.zeros(0), SAMPLE_RATE, format="WAV"), "contains no audio"),
    ],
)
def test_unreadable_audio_is_named(tmp_path, write, message):
    path = tmp_path / "a.flac"
    write(path)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        read_audio(AudioRef(str(path)))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_wav_that_was_cut_off_is_refused_also_within_a_shard(tmp_path, subtype):
    body = io.BytesIO()
    soundfile.write(body, tone(440, 1, SAMPLE_RATE), SAMPLE_RATE, format="WAV", subtype=subtype)
    cut = body.getvalue()[: len(body.getvalue()) // 2]
    (tmp_path / "shard.tar").write_bytes(b"x" * 77 + cut + b"y" * len(cut))
    shard = str(tmp_path / "shard.tar")
    with pytest.raises(InputError, match=r"shard\.tar \(.*\): truncated: its header says 1\.000 s of audio, 0\.49"):
        load([AudioRef(shard, byte_offset=77, num_bytes=len(cut))], AudioReader())
    (tmp_path / "cut.wav").write_bytes(cut)
    segment = AudioRef(str(tmp_path / "cut.wav"), start_s=0.1, duration_s=0.2)  # this part is complete
    assert len(read_audio(segment)) == 0.2 * SAMPLE_RATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])  # the last exceeds float32
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_not_finite_are_refused_with_their_number(tmp_path, subtype, value):
    waveform_T = tone(440, 1, SAMPLE_RATE)
    soundfile.write(tmp_path / "a.wav", waveform_T, SAMPLE_RATE, subtype=subtype)
    assert len(read_audio(AudioRef(str(tmp_path / "a.wav")))) == SAMPLE_RATE
    waveform_T[8000:8003] = value
    soundfile.write(tmp_path / "a.wav", waveform_T, SAMPLE_RATE, subtype=subtype)
    with pytest.raises(InputError, match=r"a\.wav: 3 of 16,000 samples are NaN or infinite\. Leave it out"):
        decode((tmp_path / "a.wav").read_bytes(), AudioRef(str(tmp_path / "a.wav")))
    assert len(read_audio(AudioRef(str(tmp_path / "a.wav"), start_s=0.0, duration_s=0.5))) == SAMPLE_RATE // 2


def test_integers_saved_as_floats_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(440, 1, SAMPLE_RATE) * 32768, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=r"a\.wav: the peak is [\d.]+; divide by full scale \(32768 for 16 bits\)"):
        read_audio(AudioRef(str(path)))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_channels_that_cancel_are_refused_unless_one_is_chosen(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    left_T = tone(440, 1, SAMPLE_RATE)
    soundfile.write(path, np.stack([left_T, -left_T], axis=1), SAMPLE_RATE)
    with pytest.raises(InputError, match="its channels cancel each other: their mean is silent"):
        decode(path.read_bytes(), AudioRef(str(path)))
    assert len(decode(path.read_bytes(), AudioRef(str(path), channel=1))) == SAMPLE_RATE
    soundfile.write(path, np.zeros((SAMPLE_RATE, 2)), SAMPLE_RATE)  # silent, but nothing cancels
    assert len(read_audio(AudioRef(str(path)))) == SAMPLE_RATE


def test_bytes_decode_to_what_the_file_does(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440, 1, SAMPLE_RATE), SAMPLE_RATE)
    waveform_T = decode(path.read_bytes(), AudioRef(str(path)))
    assert waveform_T.dtype == np.int16
    assert as_float(waveform_T).dtype == np.float32
    np.testing.assert_array_equal(as_float(waveform_T), read_audio(AudioRef(str(path))))


@pytest.mark.parametrize("sample_rate", [SAMPLE_RATE, 8_000])
def test_a_segment_is_that_stretch_of_the_recording(tmp_path, sample_rate):
    path = tmp_path / "long.wav"
    ramp = np.arange(4 * sample_rate) / (8 * sample_rate)
    soundfile.write(path, ramp, sample_rate)
    segment = AudioRef(str(path), start_s=1.25, duration_s=0.5)
    for waveform_T in (read_audio(segment), decode(path.read_bytes(), segment), *load([segment], AudioReader())):
        assert len(waveform_T) == SAMPLE_RATE // 2
        inner = slice(200, -200)  # resampling rings at the ends
        expected = (1.25 + np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE) / 8
        np.testing.assert_allclose(waveform_T[inner], expected[inner], atol=1e-3)


def test_a_segment_behind_the_end_is_refused(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(440, 2, SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(InputError, match=r"the segment ends at 2\.500 s, the file at 2\.000 s"):
        read_audio(AudioRef(str(path), start_s=1.5, duration_s=1.0))
    assert len(read_audio(AudioRef(str(path), start_s=1.5, duration_s=0.505))) == SAMPLE_RATE // 2  # rounded seconds


def test_files_segments_and_byte_ranges_come_in_the_order_asked_for(tmp_path):
    recording, shard = tmp_path / "long.flac", tmp_path / "shard.tar"
    soundfile.write(recording, spell("ABCD"), SAMPLE_RATE)
    body = io.BytesIO()
    soundfile.write(body, spell("E"), SAMPLE_RATE, format="FLAC")
    shard.write_bytes(b"x" * 77 + body.getvalue() + b"y" * 99)
    refs = [
        AudioRef(str(recording), start_s=0.08, duration_s=0.08),
        AudioRef(str(shard), byte_offset=77, num_bytes=len(body.getvalue())),
        AudioRef(str(recording)),
    ]
    expected = [spell("B"), spell("E"), spell("ABCD")]
    for waveform_T, expected_T in zip(load(refs, AudioReader()), expected, strict=True):
        np.testing.assert_allclose(as_float(waveform_T), expected_T, atol=1 / 2**15)
