"""A model for 8 kHz is fed 8 kHz: in training, scoring, transcribing and in what is exported."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tiny import TINY_CONFIG, data, trainer, write_corpus
from torchaudio.functional import resample
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2FeatureExtractor

from w2v_lightning.errors import InputError
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import Transcriber
from w2v_lightning.model import pretraining, wav2vec2
from w2v_lightning.model.stored import waveform_format
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.text.vocabulary import Vocabulary

RATE = 8_000


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = wav2vec2.from_scratch({**TINY_CONFIG, "initializer_range": 0.3}, Vocabulary())
    wav2vec2.save_pretrained(tmp_path / "model", model, Vocabulary(), True, RATE)
    return tmp_path / "model"


@pytest.mark.parametrize("file_rate", [8_000, 16_000, 44_100])
def test_transcriber_feeds_the_rate_of_the_model(folder, tmp_path, file_rate):
    noise_T = (0.1 * np.random.default_rng(0).standard_normal(2 * file_rate)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise_T, file_rate, subtype="FLOAT")
    transcriber = Transcriber.from_pretrained(str(folder), "cpu")
    manifest = load_inputs([tmp_path / "a.wav"])
    (batch,) = transcriber.loader(manifest, transcriber.slots(manifest), 0)
    expected_T = resample(torch.from_numpy(noise_T), file_rate, RATE)
    torch.testing.assert_close(batch.waveforms_BT[0, : len(expected_T)], expected_T)
    assert batch.audio_seconds == 2.0
    processor, theirs = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder).eval()
    inputs = processor(expected_T.numpy(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        best_BF = theirs(**inputs).logits.argmax(dim=-1)
    ((_, text),) = transcriber.transcribe(manifest)
    assert text == transcriber.vocabulary.decode(best_BF[0].tolist())


def test_fit_reads_and_exports_the_rate(folder, tmp_path):
    module, datamodule = Wav2Vec2CTC(str(folder)), data(write_corpus(tmp_path / "corpus"))
    assert module.input_spec.sample_rate == RATE
    trainer(tmp_path, max_steps=1).fit(module, datamodule)
    batch = next(iter(datamodule.val_dataloader()[0]))
    manifest = datamodule.datasets["dev"].manifest
    durations_s = dict(zip(manifest.ids, manifest.durations_s_N, strict=True))
    assert batch.num_samples_B.tolist() == [round(durations_s[i] * RATE) for i in batch.ids]
    module.save_pretrained(tmp_path / "export")
    assert AutoProcessor.from_pretrained(tmp_path / "export").feature_extractor.sampling_rate == RATE
    assert waveform_format(str(tmp_path / "export")).sample_rate == RATE


def test_pretraining_exports_the_rate(tmp_path):
    model = pretraining.from_scratch({**TINY_CONFIG, "codevector_dim": 8, "proj_codevector_dim": 8})
    pretraining.save_pretrained(tmp_path / "m", model, True, RATE)
    assert waveform_format(str(tmp_path / "m")).sample_rate == RATE


def test_too_short_is_counted_at_the_rate_of_the_model(folder, tmp_path):
    spec = wav2vec2.input_spec(AutoModelForCTC.from_pretrained(folder).config, Vocabulary(), True)
    soundfile.write(tmp_path / "short.wav", np.zeros(spec.min_samples), 16_000)  # half as many at 8 kHz
    manifest = load_inputs([tmp_path / "short.wav"])
    with pytest.raises(InputError, match=rf"{spec.min_samples // 2} samples at 8 kHz, the model needs"):
        Transcriber.from_pretrained(str(folder), "cpu").transcribe(manifest)


@pytest.mark.parametrize("rate", [0, -1, "16k", None])
def test_a_rate_that_is_none_is_refused(folder, rate):
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.exists():
            content = json.loads(path.read_text())
            (content.get("feature_extractor", content))["sampling_rate"] = rate
            path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"sampling_rate in preprocessor_config\.json is"):
        waveform_format(str(folder))


def test_a_vocabulary_file_without_tokenizer_files_is_enough(folder):
    for name in ("tokenizer_config.json", "special_tokens_map.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert wav2vec2.from_pretrained(str(folder), {})[1] == Vocabulary()


def test_the_settings_of_the_waveforms_are_read_once(folder, monkeypatch):
    reads, read = [], Wav2Vec2FeatureExtractor.from_pretrained
    monkeypatch.setattr(Wav2Vec2FeatureExtractor, "from_pretrained", lambda name: reads.append(name) or read(name))
    module = Wav2Vec2CTC(str(folder))
    assert (module.normalise, module.sample_rate) == (True, RATE)
    assert Transcriber.from_pretrained(str(folder), "cpu").spec.sample_rate == RATE
    assert reads == [str(folder)] * 2
