import json

import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, random_texts, spell, write_split
from rapidfuzz.distance import Levenshtein
from tiny import TINY_CONFIG
from transformers import AutoModelForCTC, AutoProcessor, Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError
from w2v_lightning.inference.command import main, transcribe
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import Transcriber
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    wav2vec2.save_pretrained(
        tmp_path / "model", wav2vec2.from_scratch(TINY_CONFIG, Vocabulary()), Vocabulary(), normalise=True
    )
    return str(tmp_path / "model")


def transcribed_by_transformers(folder, waveform):
    """Transcribe with plain transformers, as a user without this package."""
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
    expected = transcribed_by_transformers(folder, waveform)
    assert (name, text) == (str(path), " ".join(expected.replace("<s>", "").replace("</s>", "").split()))
    assert text  # random weights produce some text


def test_another_sample_rate_and_stereo_are_heard_like_the_original(folder, tmp_path):
    mono, fast = tmp_path / "mono.wav", tmp_path / "stereo48.wav"
    soundfile.write(mono, spell("AB CD"), SAMPLE_RATE, subtype="FLOAT")
    channel = spell("AB CD", sample_rate=48_000)
    soundfile.write(fast, np.stack([channel, channel], axis=1), 48_000, subtype="FLOAT")
    (_, from_mono), (_, from_fast) = transcribe([mono, fast], folder, device="cpu")
    # Random weights amplify small differences: a few letters may differ, most must not.
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


@pytest.mark.parametrize("kind", [Wav2Vec2ForPreTraining, Wav2Vec2Model])
def test_an_encoder_without_a_head_is_refused_instead_of_printing_random_letters(tmp_path, kind):
    config = Wav2Vec2Config(**TINY_CONFIG, codevector_dim=8, proj_codevector_dim=8)
    kind(config).save_pretrained(tmp_path / "encoder")
    soundfile.write(tmp_path / "a.wav", spell("AB"), SAMPLE_RATE)
    arguments = [str(tmp_path / "a.wav"), "--model", str(tmp_path / "encoder"), "--device", "cpu"]
    refusal = rf"encoder is an encoder without a CTC head \({kind.__name__}\).*fine-tune it first"
    with pytest.raises(InputError, match=refusal):
        main(arguments)
    with pytest.raises(InputError, match=refusal):
        transcribe(arguments[:1], str(tmp_path / "encoder"), "cpu")


@pytest.fixture
def corpus(tmp_path, folder):
    """Manifest whose references are the model's own transcriptions; the first has an additional word."""
    write_split(tmp_path / "corpus", "dev", random_texts(6, seed=1))
    manifest = load_inputs([tmp_path / "corpus"])
    texts = [text.lower() for _, text in transcribe([tmp_path / "corpus"], folder, device="cpu")]
    texts[0] += " more"
    ids = [f"utterance-{i}" for i in range(len(manifest))]
    Manifest(ids, manifest.audio_paths, manifest.durations_s_N, texts, manifest.speakers).save(tmp_path / "dev.jsonl")
    return Manifest.load(tmp_path / "dev.jsonl")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_with_references_what_was_heard_stands_beside_them_and_is_scored(folder, corpus, tmp_path, capsys):
    out = tmp_path / "new" / "texts.jsonl"
    main(
        [str(tmp_path / "dev.jsonl"), "--model", folder, "--device", "cpu", "--device-seconds", "2", "--out", str(out)]
    )
    rows = rows_of(out)
    assert [row["id"] for row in rows] == corpus.ids
    assert [row["text"] for row in rows] == corpus.texts
    assert [row["pred_text"] for row in rows[1:]] == [text.upper() for text in corpus.texts[1:]]
    num_words = sum(len(text.split()) for text in corpus.texts)
    printed = capsys.readouterr().out
    assert f"WER {1 / num_words:.2%}, CER" in printed
    assert "6 recordings, 0.00 h, in" in printed


def test_without_references_what_was_heard_is_a_manifest_that_can_be_read_from_anywhere(
    folder, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    main(["corpus", "--model", folder, "--device", "cpu", "--out", "elsewhere/texts.jsonl"])
    monkeypatch.chdir("/")
    outputs = Manifest.load(tmp_path / "elsewhere" / "texts.jsonl")
    assert outputs.audio_paths == corpus.audio_paths
    assert outputs.texts[1:] == [text.upper() for text in corpus.texts[1:]]
    assert "WER" not in capsys.readouterr().out


def test_a_manifests_ids_name_the_lines(folder, corpus, tmp_path, capsys):
    main([str(tmp_path / "dev.jsonl"), "--model", folder, "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[0] for line in lines] == corpus.ids


def cut_in_half(path):
    with open(path, "rb+") as file:
        file.truncate(file.seek(0, 2) // 2)


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_what_is_damaged_is_named_and_all_else_is_written(folder, corpus, tmp_path, capsys, num_workers):
    soundfile.write(corpus.audio_paths[2], np.zeros(100), SAMPLE_RATE)
    cut_in_half(corpus.audio_paths[4])
    out = tmp_path / "texts.jsonl"
    options = ["--device", "cpu", "--device-seconds", "4", "--workers", num_workers, "--out", str(out)]
    assert main([str(tmp_path / "dev.jsonl"), "--model", folder, *options]) == 1
    rows, whole = rows_of(out), [0, 1, 3, 5]
    assert [row["id"] for row in rows] == [corpus.ids[i] for i in whole]
    assert [row["pred_text"] for row in rows[1:]] == [corpus.texts[i].upper() for i in whole[1:]]
    printed = capsys.readouterr()
    assert "texts.jsonl: 4 recordings" in printed.out
    assert "WER" in printed.out
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert any("0002.flac: 100 samples" in line for line in errors[:2])
    assert any("0004.flac: " in line for line in errors[:2])
    assert errors[2] == "error: 2 recordings could not be transcribed (listed above)"
    assert [path.name for path in tmp_path.glob("texts*")] == ["texts.jsonl"]


def test_formats_that_no_seek_works_on_are_transcribed_beside_others(folder, tmp_path, capsys):
    for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "GSM610")):
        soundfile.write(tmp_path / name, spell("BAD CAB"), 16_000, subtype=subtype)
    assert main([str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--model", str(folder)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_texts_of_others_are_printed_in_order_around_what_is_damaged(folder, corpus, tmp_path, capsys):
    files = [*corpus.audio_paths[:3], str(tmp_path / "missing.wav"), *corpus.audio_paths[3:]]
    cut_in_half(files[1])
    with open(files[5], "w") as file:
        file.write("not audio")
    assert main([*files, "--model", folder, "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert [line.partition("\t")[0] for line in printed.out.splitlines()] == [files[i] for i in (0, 2, 4, 6)]
    for name in (files[1], "missing.wav", files[5]):
        assert sum(name in line for line in printed.err.splitlines()) == 1
    assert "error: 3 recordings could not be transcribed (listed above)\n" in printed.err


def test_a_name_stands_before_the_text_of_the_only_one_that_could_be_heard(folder, corpus, tmp_path, capsys):
    files = [corpus.audio_paths[0], str(tmp_path / "missing.wav")]
    assert main([*files, "--model", folder, "--device", "cpu"]) == 1
    assert capsys.readouterr().out.startswith(f"{files[0]}\t")


def test_where_nothing_can_be_heard_nothing_is_replaced(folder, corpus, tmp_path, capsys):
    out = tmp_path / "texts.jsonl"
    out.write_text("of yesterday")
    cut_in_half(corpus.audio_paths[0])
    for source in (corpus.audio_paths[0], "missing.wav"):
        assert main([source, "--model", folder, "--device", "cpu", "--out", str(out)]) == 1
        assert "error: 1 recording could not be transcribed (listed above)" in capsys.readouterr().err
    assert out.read_text() == "of yesterday"
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), InputError("the storage is gone")])
def test_what_was_heard_before_an_interruption_is_kept(folder, corpus, tmp_path, capsys, monkeypatch, reason):
    original, batches = Transcriber.infer, []

    def hear(self, batch):
        batches.append(batch)
        if len(batches) == 4:
            raise reason
        return original(self, batch)

    monkeypatch.setattr(Transcriber, "infer", hear)
    slots = [np.array([3]), np.array([1]), np.array([5]), np.array([0, 2, 4])]
    monkeypatch.setattr(Transcriber, "slots", lambda *_: [Slot(positions) for positions in slots])
    arguments = [str(tmp_path / "dev.jsonl"), "--model", folder, "--device", "cpu", "--out", str(tmp_path / "h.jsonl")]
    if isinstance(reason, KeyboardInterrupt):
        assert main(arguments) == 130
    else:
        with pytest.raises(InputError):
            main(arguments)
    assert not (tmp_path / "h.jsonl").exists()
    assert f"Partial results are in {tmp_path / 'h.partial.jsonl'}" in capsys.readouterr().err
    outputs = {row["id"]: row["pred_text"] for row in rows_of(tmp_path / "h.partial.jsonl")}
    assert outputs == {corpus.ids[i]: corpus.texts[i].upper() for i in (3, 1)}  # texts wait for the next batch


def test_one_that_alone_is_too_long_for_the_device_is_left_out(folder, corpus, tmp_path, capsys, monkeypatch):
    original, longest = Transcriber._best, max(range(6), key=lambda i: corpus.durations_s_N[i])

    def best(self, batch):
        if corpus.ids[longest] in batch.ids:
            raise torch.OutOfMemoryError
        return original(self, batch)

    monkeypatch.setattr(Transcriber, "_best", best)
    options = ["--device", "cpu", "--device-seconds", "0.001"]
    assert main([str(tmp_path / "dev.jsonl"), "--model", folder, *options]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5
    assert f"{corpus.ids[longest]}: " in printed.err
    assert "too long for the GPU's memory" in printed.err


def test_an_output_that_cannot_be_written_is_named_before_anything_is_heard(folder, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file" / "texts.jsonl"):
        with pytest.raises(InputError, match=r"--out: .*choose another file"):
            main(["no.wav", "--model", folder, "--out", str(out)])
