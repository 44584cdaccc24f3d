import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, spell
from rapidfuzz.distance import Levenshtein
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor

from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.text import Vocabulary
from w2v_lightning.transcribe import main, transcribe


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    wav2vec2.save_pretrained(
        tmp_path / "model", wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), normalise=True
    )
    return str(tmp_path / "model")


def heard_by_transformers(folder, waveform):
    """What a user gets who has never heard of this package."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder)
    inputs = processor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    with torch.no_grad():
        ids = model(**inputs).logits.argmax(-1)
    return processor.batch_decode(ids)[0]


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg"])
def test_hears_what_plain_transformers_hears(folder, tmp_path, suffix):
    path = tmp_path / f"tones.{suffix}"
    soundfile.write(path, spell("HELLO WORLD"), SAMPLE_RATE)
    ((name, text),) = transcribe([path], folder, device="cpu")
    waveform, _ = soundfile.read(path, dtype="float32")
    expected = heard_by_transformers(folder, waveform)
    assert (name, text) == (str(path), " ".join(expected.replace("<s>", "").replace("</s>", "").split()))
    assert text  # random weights do put out something


def test_another_sample_rate_and_stereo_are_heard_like_the_original(folder, tmp_path):
    mono, fast = tmp_path / "mono.wav", tmp_path / "stereo48.wav"
    soundfile.write(mono, spell("AB CD"), SAMPLE_RATE, subtype="FLOAT")
    channel = spell("AB CD", sample_rate=48_000)
    soundfile.write(fast, np.stack([channel, channel], axis=1), 48_000, subtype="FLOAT")
    (_, from_mono), (_, from_fast) = transcribe([mono, fast], folder, device="cpu")
    # Random weights put out much from little: a few letters at the edges may differ, most must not.
    assert Levenshtein.normalized_similarity(from_fast, from_mono) > 0.7


def test_prints_bare_text_for_one_file_and_names_for_several(folder, tmp_path, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, spell("AB"), SAMPLE_RATE)
    main([str(path), "--model", folder, "--device", "cpu"])
    text = capsys.readouterr().out
    main([str(path), str(path), "--model", folder, "--device", "cpu"])
    assert capsys.readouterr().out == 2 * f"{path}\t{text}"


def test_bad_files_are_named(folder, tmp_path):
    short, text = tmp_path / "short.wav", tmp_path / "text.wav"
    soundfile.write(short, np.zeros(100), SAMPLE_RATE)
    text.write_text("not audio")
    with pytest.raises(InputError, match=r"short\.wav: 100 samples at 16 kHz, the model needs \d+"):
        list(transcribe([short], folder, device="cpu"))
    with pytest.raises(InputError, match=r"text\.wav: cannot be read as audio"):
        list(transcribe([text], folder, device="cpu"))
    with pytest.raises(InputError, match=r"missing\.wav"):
        list(transcribe([tmp_path / "missing.wav"], folder, device="cpu"))
