import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, random_texts, spell
from tiny import TINY_CONFIG

from w2v_lightning.data.manifest import Manifest
from w2v_lightning.errors import InputError
from w2v_lightning.inference import transcriber as module
from w2v_lightning.inference.inputs import load_inputs
from w2v_lightning.inference.transcriber import BatchOutput, Transcriber, default_device_seconds, in_order
from w2v_lightning.model import wav2vec2
from w2v_lightning.text.vocabulary import Vocabulary

# In transformers, padding affects the group norm of the base models: the harder case.
GROUP_NORM = TINY_CONFIG | {"feat_extract_norm": "group"}


def transcriber(**options) -> Transcriber:
    torch.manual_seed(0)
    return Transcriber(wav2vec2.from_scratch(GROUP_NORM, Vocabulary()), Vocabulary(), True, "cpu", **options)


@pytest.fixture
def manifest(tmp_path):
    paths = []
    for number, text in enumerate(random_texts(17, seed=3)):
        paths.append(tmp_path / f"{number}.flac")
        soundfile.write(paths[-1], spell(text), SAMPLE_RATE)
    return load_inputs(paths)


@pytest.fixture
def alone(manifest):
    """Texts in order, each utterance transcribed in a batch of its own."""
    texts = list(in_order(transcriber().transcribe(manifest, device_seconds=1e-3, num_workers=0)))
    assert len(set(texts)) > 10  # even random weights distinguish the utterances
    return texts


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("window", [5, 1000])
def test_batches_workers_and_windows_change_neither_texts_nor_order(manifest, alone, monkeypatch, window, num_workers):
    monkeypatch.setattr(module, "WINDOW", window)
    results = list(transcriber().transcribe(manifest, device_seconds=4.0, num_workers=num_workers))
    positions = [position for position, _ in results]
    assert sorted(positions) == list(range(17))
    assert positions != sorted(positions)
    assert list(in_order(results)) == alone
    for start in range(0, 17, window):  # the texts of a window come before those of later ones
        assert set(positions[start : start + window]) == set(range(start, min(17, start + window)))


def test_a_batch_holds_no_more_audio_than_asked_for(manifest):
    for slot in transcriber().slots(manifest, 4.0):
        longest_s = manifest.durations_s_N[slot.positions].max()
        assert len(slot.positions) == 1 or len(slot.positions) * longest_s <= 4.0


def test_a_batch_is_queued_before_the_texts_of_the_last_one_are_put_together(manifest, monkeypatch):
    ours, events = transcriber(), []
    for name in ("infer", "decode"):
        original = getattr(ours, name)
        monkeypatch.setattr(ours, name, lambda value, name=name, f=original: (events.append(name), f(value))[1])
    list(ours.transcribe(manifest, device_seconds=4.0))
    num_batches = len(ours.slots(manifest, 4.0))
    assert num_batches > 2
    assert events == ["infer", *["infer", "decode"] * (num_batches - 1), "decode"]


def test_no_more_processes_are_started_than_there_is_work_for(manifest, monkeypatch):
    asked = []
    original = module.batch_loader
    monkeypatch.setattr(module, "batch_loader", lambda *args: (asked.append(args[2]), original(*args))[1])
    monkeypatch.setattr(module, "default_workers", lambda device: 2)
    for device_seconds in (1000.0, 20.0, 4.0):
        list(transcriber().transcribe(manifest, device_seconds))
    num_batches = [len(transcriber().slots(manifest, device_seconds)) for device_seconds in (1000.0, 20.0, 4.0)]
    assert num_batches[0] == 1
    assert num_batches[2] > 3
    assert asked == [min(2, number - 1) for number in num_batches]


def test_processes_are_for_gpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16), raising=False)
    assert module.default_workers(torch.device("cuda")) == 15
    assert module.default_workers(torch.device("cpu")) == 0
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4), raising=False)
    assert module.default_workers(torch.device("cuda")) == 3


def test_references_with_characters_that_have_no_token_do_no_harm(manifest, alone):
    with_texts = Manifest(manifest.ids, manifest.audio_paths, manifest.durations_s_N, ["17 €!"] * 17, [""] * 17)
    assert list(in_order(transcriber().transcribe(with_texts, device_seconds=4.0))) == alone


@pytest.mark.parametrize(
    ("precision", "weights", "logits"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_computes_in_the_precision_asked_for(manifest, monkeypatch, precision, weights, logits):
    ours, dtypes = transcriber(precision=precision), []
    original = wav2vec2.ctc_logits
    monkeypatch.setattr(
        module.wav2vec2, "ctc_logits", lambda *a, **k: (output := original(*a, **k), dtypes.append(output.dtype))[0]
    )
    texts = list(in_order(ours.transcribe(manifest)))
    assert ours.network.lm_head.weight.dtype == weights
    assert set(dtypes) == {logits}
    assert len(texts) == 17


def test_an_utterance_too_short_is_named_before_anything_is_heard(manifest, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "short.wav", np.zeros(60), SAMPLE_RATE)
    ours = transcriber()
    monkeypatch.setattr(ours, "infer", lambda batch: pytest.fail("a batch was transcribed"))
    with pytest.raises(InputError, match=r"short\.wav: 60 samples at 16 kHz, the model needs 330"):
        ours.transcribe(Manifest.join([manifest, load_inputs([tmp_path / "short.wav"])]))


def test_damage_that_only_decoding_finds_is_named(manifest, tmp_path):
    whole = (tmp_path / "3.flac").read_bytes()
    (tmp_path / "3.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"3\.flac"):
        list(transcriber().transcribe(manifest, device_seconds=4.0, num_workers=1))


def out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_utterance_that_alone_is_too_long_for_the_memory_is_named_with_the_remedy(manifest, monkeypatch):
    monkeypatch.setattr(module.wav2vec2, "ctc_logits", out_of_memory)
    with pytest.raises(InputError, match=r"\d+\.flac: \d+ s are too long for the GPU's memory; .* --device cpu"):
        list(transcriber().transcribe(manifest, device_seconds=1000.0))


def test_what_is_too_much_for_the_memory_at_once_is_heard_in_parts(manifest, monkeypatch, caplog):
    expected = list(in_order(transcriber().transcribe(manifest, device_seconds=1e-3)))
    ours, tried, held = transcriber(), [], []
    original = wav2vec2.ctc_logits

    def of_at_most_three(network, waveforms_BT, *args, **kwargs):
        assert not any(reference() is not None for reference in held)  # tensors of the failed attempt are freed
        tried.append(len(waveforms_BT))
        if tried[-1] > 3:
            held.append(weakref.ref(waveforms_BT))
            out_of_memory()
        return original(network, waveforms_BT, *args, **kwargs)

    monkeypatch.setattr(module.wav2vec2, "ctc_logits", of_at_most_three)
    assert list(in_order(ours.transcribe(manifest, device_seconds=1000.0))) == expected
    assert tried == [17, 8, 4, 2, 2, 2, 2, 2, 2, 2, 3]  # batches of a size that failed are not tried again
    warnings = [record.getMessage() for record in caplog.records]
    assert [warning.split()[0] for warning in warnings] == ["17", "8", "4"]
    message = (
        r"17 utterances of up to \d+\.\d s are too many .* lower --device-seconds below \d+\. Splitting the batch\."
    )
    assert re.fullmatch(message, warnings[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "--device cuda:99: not available"),
        ({"device": "gpu"}, "--device gpu: not available"),
        ({"precision": "8-bit"}, "--precision: '8-bit' is not supported; choose from auto, 32-true"),
    ],
)
def test_wrong_options_are_named(options, message):
    network = wav2vec2.from_scratch(GROUP_NORM, Vocabulary())
    with pytest.raises(InputError, match=message):
        Transcriber(network, Vocabulary(), True, **options)


def test_batches_must_hold_audio_and_processes_be_a_number(manifest):
    with pytest.raises(InputError, match="--device-seconds is -1, must be a positive number of seconds"):
        transcriber().transcribe(manifest, device_seconds=-1.0)
    with pytest.raises(InputError, match="--workers is -2, must be 0 or more"):
        transcriber().transcribe(manifest, num_workers=-2)


def test_texts_wait_until_the_device_is_done():
    best_BF = torch.zeros(1, 5, dtype=torch.int64)

    class Done:
        def synchronize(self):
            best_BF.copy_(torch.tensor([[7, 7, 0, 7, 4]]))

    a = Vocabulary().tokens[7]
    assert transcriber().decode(BatchOutput(best_BF, torch.tensor([4]), Done())) == [a + a]


def test_a_small_gpu_is_given_less_and_a_large_one_not_more_than_pays(monkeypatch):
    config = wav2vec2.from_scratch(GROUP_NORM, Vocabulary()).config
    config.conv_dim, config.conv_stride = [512], [5]
    free = {"T4": 15 * 2**30, "H200": 139 * 2**30}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free["T4"], free["T4"]))
    assert 200 < default_device_seconds(config, torch.device("cuda")) < 400
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free["H200"], free["H200"]))
    assert default_device_seconds(config, torch.device("cuda")) == 800
    assert default_device_seconds(config, torch.device("cpu")) < 100


def test_texts_are_handed_on_as_soon_as_all_before_them_are_there():
    taken = []

    def results():
        for position in (2, 0, 1, 3):
            taken.append(position)
            yield position, str(position)

    texts = in_order(results())
    assert next(texts) == "0"
    assert taken == [2, 0]
    assert list(texts) == ["1", "2", "3"]


def test_another_duration_than_the_manifest_says_costs_no_text(manifest, alone, caplog):
    stated = replace(manifest, durations_s_N=manifest.durations_s_N.copy())
    stated.durations_s_N[[3, 5]] /= 3
    outcomes = transcriber().attempt(stated, device_seconds=20, num_workers=0)
    assert list(in_order(outcomes)) == alone
    assert len(caplog.messages) == 2
    assert all(message.endswith("It is transcribed as it is.") for message in caplog.messages)
