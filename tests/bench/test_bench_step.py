import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_bench_workload import manifest
from tiny import TINY_CONFIG

from w2v_lightning.__main__ import main
from w2v_lightning.bench import parity, side, step
from w2v_lightning.bench.parity import NOTHING_RANDOM
from w2v_lightning.bench.settings import OPTIMISATIONS, StepOptions, speed_without
from w2v_lightning.bench.side import Memory, Side
from w2v_lightning.bench.stepper import Machine, our_stepper
from w2v_lightning.bench.stock import attention_mask, stock_model
from w2v_lightning.bench.workload import workloads
from w2v_lightning.command_line import parse
from w2v_lightning.model.speed import Speed
from w2v_lightning.module import Wav2Vec2CTC

CONFIG = {**TINY_CONFIG, "mask_feature_length": 16}
CPU = Machine(torch.device("cpu"), "32-true")


@pytest.fixture
def bench(tmp_path, capsys):
    """Runs `bench step` on a tiny model; returns its figures and what it printed."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 1000}))
    manifest().save(tmp_path / "train.jsonl")

    def run(*options: str) -> SimpleNamespace:
        report = tmp_path / "step.json"
        data = ["--manifest", str(tmp_path / "train.jsonl"), "--batch-seconds", "24", "--device-seconds", "12"]
        short = ["--steps", "3", "--repetitions", "2", "--device", "cpu", "--precision", "32-true"]
        model = ["--model", str(tmp_path / "config.json")]
        status = main(["bench", "step", *model, *data, *short, "--json", str(report), *options])
        found = json.loads(report.read_text()) if report.exists() else None
        return SimpleNamespace(status=status, found=found, **capsys.readouterr()._asdict())

    return run


def module(**options):
    torch.manual_seed(0)
    return Wav2Vec2CTC(None, CONFIG, **options)


def load_of(device_seconds=24.0, num_steps=2):
    settings = {"batch_seconds": 24.0, "device_seconds": [device_seconds], "num_steps": num_steps, "pin": False}
    return workloads(manifest(), module().input_spec, **settings)[device_seconds]


def test_both_sides_are_measured_on_the_same_audio(bench):
    ran = bench("--hf-device-seconds", "12,24")
    assert ran.status == 0
    found = ran.found
    assert [(s["side"], s["device_seconds"]) for s in found["sides"]] == [("ours", 12), ("hf", 12), ("hf", 24)]
    assert [s["micro_batches_per_step"] for s in found["sides"]] == [2, 2, 1]
    for measured in found["sides"]:
        assert measured["audio_s"] == found["audio_s_per_pass"]
        assert len(measured["pass_s"]) == 2
        median_s = np.median(measured["pass_s"])
        speed = measured["audio_s_per_s"]
        assert speed["median"] == pytest.approx(found["audio_s_per_pass"] / median_s)
        assert speed["min"] <= speed["median"] <= speed["max"]
        assert measured["step_ms"] == pytest.approx(1000 * median_s / 3)
        assert 0 < measured["mfu"] < 1.5
        assert 0 <= measured["padding"] < 0.2
        assert measured["warm_up_s"] > 0
        assert measured["peak_gib"] is None  # no GPU
    assert found["matrix_tflops_per_s"] > 0
    assert {"torch", "transformers"} <= found["versions"].keys()
    assert found["settings"]["precision"] == "32-true"
    assert found["agreement"]["holds"]
    assert found["agreement"]["loss_difference"] < 1e-5
    assert found["agreement"]["gradient_difference"] < 2e-3
    assert ran.out.count(" hf ") >= 2
    assert "Speed-up over the best stock side (hf at " in ran.out
    assert "they agree" in ran.out


def test_sides_take_turns_also_where_the_loop_is_that_of_trainer_fit(bench, tmp_path, monkeypatch):
    module().save_pretrained(tmp_path / "model")
    turns = []
    run, end = Side.run, side.Passes.end
    monkeypatch.setattr(Side, "run", lambda self, load: (turns.append(self.name), run(self, load)))
    monkeypatch.setattr(side.Passes, "end", lambda self: (turns.append(f"{self.side} timed"), end(self)))
    found = bench("--in-fit", "--device-seconds", "12", "--model", str(tmp_path / "model")).found
    assert turns[:4] == ["ours", "ours", "hf", "hf"]  # warm-up
    turn = ["ours in fit timed", "ours", "ours timed", "hf", "hf timed"]
    assert turns[4:] == turn * 2
    assert [s["side"] for s in found["sides"]] == ["ours in fit", "ours", "hf"]
    assert [len(s["pass_s"]) for s in found["sides"]] == [2, 2, 2]
    assert found["sides"][0]["warm_up_s"] > 0


@pytest.mark.slow
def test_each_optimisation_is_switched_off_alone(bench, monkeypatch):
    built = []
    monkeypatch.setattr(step, "our_stepper", lambda m, machine: (built.append(m.speed), our_stepper(m, machine))[1])
    found = bench("--ablate", "--compare", "", "--off", "compile", "--steps", "1", "--repetitions", "1").found
    names = [name for name in vars(Speed()) if name not in ("compile", "graphs")]  # graphs are off anyway
    assert [s["side"] for s in found["sides"]][1:] == [side for n in names for side in ("ours", f"ours without {n}")]
    assert built == [speed_without(["compile"])] + [speed_without(["compile", name]) for name in names]
    assert found["agreement"] is None


def test_some_optimisations_are_switched_off_alone(bench):
    ablate = ["--ablate", "ctc,positional_convolution=fft"]
    found = bench(*ablate, "--compare", "", "--steps", "1", "--repetitions", "1").found
    sides = ["ours", "ours", "ours without ctc", "ours", "ours with positional_convolution=fft"]
    assert [s["side"] for s in found["sides"]] == sides


def test_ours_is_tried_with_several_device_seconds_too(bench):
    found = bench("--device-seconds", "12,24", "--repetitions", "1", "--steps", "1").found
    assert [(s["side"], s["device_seconds"]) for s in found["sides"]] == [
        *(("ours", 12), ("ours", 24)),
        *(("hf", 12), ("hf", 24)),
    ]


def test_comma_lists_may_stay_without_a_value_or_be_empty():
    def options(*args):
        return parse(StepOptions, "bench step", args)

    assert options().ablate is None
    assert options("--ablate", "--device-seconds", "800,400") == options(
        "--ablate", ",".join(OPTIMISATIONS), "--device_seconds=800,400"
    )
    assert (options("--ablate", "ctc").ablate, options("--device-seconds", "800").device_seconds) == ("ctc", "800")
    assert (options("--compare", "").compare, options("--off", "").off) == ("", "")


def test_help_names_all_optimisations():
    (help_of_off,) = [action.help for action in step.parser()._actions if action.dest == "off"]
    assert help_of_off.endswith(f"names: {', '.join(OPTIMISATIONS)}")


def test_off_is_the_plain_way():
    assert speed_without([]) == Speed()
    off = speed_without(["positional_convolution", "compile"])
    assert (off.positional_convolution, off.compile, off.attention) == ("convolution", False, "auto")
    off = speed_without(["attention=packed", "compile=true", "ctc"])
    assert (off.attention, off.compile, off.ctc) == ("packed", True, "torch")


def test_what_stock_cannot_do_is_reported_and_ours_is_measured(bench, monkeypatch):
    def fails(load):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")

    stock = step.stock_stepper

    def stepper(*args, **options):
        made = stock(*args, **options)
        made.step = fails
        return made

    monkeypatch.setattr(step, "stock_stepper", stepper)
    ran = bench()
    assert [s["side"] for s in ran.found["sides"]] == ["ours"]
    assert ran.found["failures"] == {"hf at 12 s": "RuntimeError: CUDA out of memory."}
    assert "hf at 12 s: failed, RuntimeError: CUDA out of memory." in ran.out


def test_losses_that_differ_are_said_to(bench, monkeypatch):
    def other(module, **changes):
        model = stock_model(module, **changes)
        model.wav2vec2.encoder.layers[0].attention.q_proj.weight.data.mul_(50.0)
        model.lm_head.weight.data.mul_(2.0)
        return model

    monkeypatch.setattr(parity, "stock_model", other)
    ran = bench("--repetitions", "1", "--steps", "1")
    assert not ran.found["agreement"]["holds"]
    assert "they do NOT agree" in ran.out


def test_stock_has_our_weights_and_trains_what_we_train():
    ours = module()
    stock = stock_model(ours)
    pairs = list(zip(ours.model.named_parameters(), stock.named_parameters(), strict=True))
    assert all(a == b and torch.equal(x, y) and x.requires_grad == y.requires_grad for (a, x), (b, y) in pairs)
    assert stock.training
    assert stock.config._attn_implementation == "sdpa"
    assert stock.config.layerdrop == 0.1
    assert stock.config.mask_feature_prob == 0.5
    assert not any(parameter.requires_grad for parameter in stock.wav2vec2.feature_extractor.parameters())
    batch = load_of().batches[0]
    assert attention_mask(stock.config, batch).sum(1).tolist() == batch.num_samples_B.tolist()
    stock.config.feat_extract_norm = "group"
    assert attention_mask(stock.config, batch) is None


def test_a_step_has_one_loss_and_gradient_however_it_is_cut_and_ends_in_one_update():
    found = []
    for device_seconds in (24.0, 7.0):
        stepper = our_stepper(module(**NOTHING_RANDOM), CPU)
        batches = load_of(device_seconds).steps[0]
        loss = sum(stepper.backward(batch) for batch in batches)
        found.append((loss, torch.cat([p.grad.flatten() for p in stepper.parameters])))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    assert (found[0][1] - found[1][1]).norm() < 5e-3 * found[0][1].norm()  # CTC in float32, see agreement.py

    stepper = our_stepper(module(), CPU)
    before = [parameter.detach().clone() for parameter in stepper.parameters]
    stepper.step(load_of(7.0).steps[0])
    assert all(not torch.equal(a, b) for a, b in zip(before, stepper.parameters, strict=True))
    assert {float(state["step"]) for state in stepper.optimizer.state.values()} == {1.0}
    assert all(parameter.grad is None for parameter in stepper.parameters)


def test_layers_are_dropped_anew_in_each_step():
    ours = module(layerdrop=0.5)
    stepper = our_stepper(ours, CPU)
    dropped = []
    for _ in range(8):
        dropped.append(tuple(ours._dropped_layers()))
        stepper.after_step()
    assert len(set(dropped)) > 2


def test_memory_of_a_side_is_without_that_of_the_others(monkeypatch):
    now = SimpleNamespace(allocated=100, peak=0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: now.allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: now.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    memory = Memory(Machine(torch.device("cuda"), "bf16-mixed"))
    memory.before_build()  # another side holds 100
    now.allocated = 130  # weights and optimiser states of this one
    memory.after_build()
    now.allocated = 170  # a third one is built
    for now.peak in (600, 500):
        memory.before_pass()
        memory.after_pass()
    assert memory.kept_bytes == 30
    assert memory.peak_bytes == 600 - 100 - 40  # what the others hold
    assert memory.peak_gib == memory.peak_bytes / 2**30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "--model is 'nowhere': give base, large, a model folder, or a JSON file"),
        (["--compare", "hf,hv"], "--compare: 'hv' is unknown; choose from hf, hf-compiled"),
        (["--off", "everything"], "--off: 'everything' is unknown; choose from feature_encoder"),
        (
            ["--off", "attention=fast"],
            "--off: 'fast' is not an implementation of attention; choose from auto, flash4, packed, padded",
        ),
        (["--ablate", "=packed"], "--ablate: '' is unknown; choose from feature_encoder"),
        (["--hf-device-seconds", "12,many"], "--hf_device_seconds is '12,many': give numbers such as 400,800."),
        (["--hf-device-seconds", "12,-1"], "--hf_device_seconds is -1: must be above 0."),
        (["--repetitions", "0"], "--repetitions is 0: must be above 0."),
        (["--device-seconds", "2"], "The longest utterance lasts 3.00 s, but --device_seconds is 2"),
        (["--device-seconds", "0"], "--device_seconds is 0: must be above 0."),
        (["--precision", "16-mixed"], "--precision is 16-mixed, which is for GPUs"),
        (["--device", "cuda"], "--device is cuda, but torch finds no CUDA device here"),
    ],
)
def test_wrong_options_end_in_one_line(bench, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = bench(*options)
    assert ran.status == 2
    assert message in ran.err
    assert ran.found is None


def test_a_config_that_is_no_json_is_refused(bench, tmp_path):
    (tmp_path / "other.json").write_text("{not json")
    ran = bench("--model", str(tmp_path / "other.json"))
    assert ran.status == 2
    assert "is not JSON" in ran.err
