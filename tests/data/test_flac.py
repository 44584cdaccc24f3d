import io

import numpy as np
import pytest
import soundfile
from corpus import SAMPLE_RATE, spell

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.decode import as_float, decode
from w2v_lightning.data.flac import StreamInfo, decode_16_bit, stream_info
from w2v_lightning.errors import InputError


def flac(samples: np.ndarray, sample_rate: int = SAMPLE_RATE, subtype: str = "PCM_16", kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format=kind, subtype=subtype)
    return file.getvalue()


SPEECH = spell("BAD CAB FACE FADED")


def test_header_says_what_was_written():
    info = stream_info(flac(np.stack([SPEECH, -SPEECH], axis=1), 44_100, "PCM_24"))
    assert (info.sample_rate, info.channels, info.bits, info.num_samples) == (44_100, 2, 24, len(SPEECH))
    assert info.md5 != bytes(16)
    assert isinstance(info, StreamInfo)


@pytest.mark.parametrize("data", [b"", b"fLaC", b"RIFF" + bytes(100), flac(SPEECH)[:41]])
def test_what_is_no_flac_has_no_header(data):
    assert stream_info(data) is None
    assert decode_16_bit(data) is None


@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_libsndfile(channels):
    data = flac(np.stack([SPEECH, SPEECH[::-1]][:channels], axis=1), 8_000)
    samples, sample_rate = decode_16_bit(data)
    assert sample_rate == 8_000
    np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(data), dtype="int16", always_2d=True)[0])


@pytest.mark.parametrize("data", [flac(SPEECH, subtype="PCM_24"), flac(SPEECH, kind="WAV")], ids=["24 bit", "WAV"])
def test_other_formats_are_left_to_libsndfile(data):
    assert decode_16_bit(data) is None
    np.testing.assert_allclose(decode(data, AudioRef("a")), SPEECH, atol=1 / 2**15)


def test_damage_anywhere_is_found_or_harmless():
    """Detect a damaged frame: dr_flac skips it, and the rest must never count as the whole."""
    data, expected = flac(SPEECH), decode(flac(SPEECH), AudioRef("a"))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.integers(42, len(data))] ^= 1 << rng.integers(8)
        cut = damaged if rng.random() < 0.7 else damaged[: rng.integers(42, len(data))]
        try:
            decoded = decode(bytes(cut), AudioRef("damaged.flac"))
        except InputError as error:
            assert "damaged.flac" in str(error)  # noqa: PT017
            refused += 1
        else:
            np.testing.assert_array_equal(decoded, expected)
    assert refused > 100


def test_librispeech_decodes_alike(librispeech):
    for path in sorted(librispeech.joinpath("dev-clean").rglob("*.flac"))[:5]:
        waveform_T = as_float(decode(path.read_bytes(), AudioRef(str(path))))
        np.testing.assert_array_equal(waveform_T, soundfile.read(path, dtype="float32")[0])
