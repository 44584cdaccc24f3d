"""`fit --profile`: attribution by range, backward and name; on a real CPU, and with simulated GPU kernels."""

import functools
import gzip
import io
import json
import re
from collections import namedtuple

import pytest
import torch
import yaml
from corpus import random_texts, write_split
from lightning.pytorch import Trainer
from rich.console import Console
from tiny import TINY_CONFIG
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.__main__ import main
from w2v_lightning.errors import InputError
from w2v_lightning.telemetry.attribution import Work, group_of, time_by_group
from w2v_lightning.telemetry.profile import NUM_STEPS, Profile, cpu_works, gpu_works

STEP = "Optimizer.step#AdamW.step"
Kernel = namedtuple("Kernel", "name device duration")


@pytest.mark.parametrize(
    ("name", "ancestors", "group"),
    [
        ("aten::mm", ("aten::linear", "attention", "forward", STEP), "attention"),
        ("attention", ("forward", STEP), "attention"),  # between the operators, in Python
        ("nvjet_tst_128", ("aten::mm", "feed-forward", "forward"), "feed-forward"),
        ("aten::mul_", (STEP, "ProfilerStep*"), "optimiser"),
        ("aten::fill_", ("Optimizer.zero_grad#AdamW.zero_grad", "forward", STEP), "optimiser"),
        ("aten::sum", ("forward", STEP), "other"),  # not the optimiser's, although inside its step
        ("aten::copy_", ("AddBackward0", "backward", STEP), "other"),
        ("aten::cat", ("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__",), "data wait"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", (), "communication"),
        ("aten::copy_", ("c10d::allreduce_", "backward", STEP), "communication"),
        ("void pytorch_flash::flash_fwd_kernel<...>", ("CompiledFunction", "forward"), "attention"),
        ("fmha_cutlassF_bf16", (), "attention"),
        ("nvjet_tst_192x192", ("aten::mm", "CompiledFunctionBackward", "backward"), "layer matrix products"),
        ("void cutlass::Kernel2<gemm>", (), "layer matrix products"),
        ("void cublasLt::splitKreduce", ("aten::addmm", "CompiledFunction"), "layer matrix products"),
        ("triton_poi_fused_add_gelu_3", ("CompiledFunction",), "feed-forward"),
        ("gelu_dropout_kernel", ("CompiledFunction",), "feed-forward"),
        ("triton_per_fused_native_layer_norm_0", ("CompiledFunction",), "layer pointwise"),
        ("void vector_fft<512>", (), "positional convolution"),
        ("_spectra_product", (), "positional convolution"),
        ("void multi_tensor_apply_kernel<adam>", (), "optimiser"),
        ("ctc_loss_backward_log_beta_gpu_kernel", (), "CTC"),
        ("Memcpy HtoD (Pinned -> Device)", (), "copies"),
        ("something_else", (), "other"),
    ],
)
def test_groups(name, ancestors, group):
    assert group_of(name, ancestors) == group


def test_times_are_summed_the_costliest_first():
    works = [Work("ctc", (), 1.0), Work("aten::mm", ("attention",), 2.0), Work("ctc", (), 2.5)]
    assert list(time_by_group(works).items()) == [("CTC", 3.5), ("attention", 2.0)]


def profiled_step():
    """Profile a step as Lightning runs it, forward and backward inside the optimiser's step; return group times."""
    layer = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(layer.parameters())

    def closure():
        with record_function("forward"):
            with record_function("attention"):
                hidden = layer(torch.ones(64, 64)).tanh()
            with record_function("CTC"):
                loss = hidden.exp().sum()
        with record_function("backward"):
            loss.backward()

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        optimizer.step(closure)
    return list(cpu_works(profiler.events()))


def test_backward_counts_with_the_part_whose_backward_it_is():
    groups = {}
    for work in profiled_step():
        groups.setdefault(work.name, set()).add(group_of(work.name, work.ancestors))
    assert groups["aten::addmm"] == groups["AddmmBackward0"] == groups["aten::mm"] == {"attention"}
    assert groups["aten::tanh_backward"] == {"attention"}
    assert groups["ExpBackward0"] == groups["aten::exp"] == {"CTC"}
    assert groups["aten::addcdiv_"] == {"optimiser"}


def test_all_of_the_cpu_time_is_given_to_somebody():
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(50, 50).exp().mm(torch.ones(50, 50))
    top_s = sum(e.cpu_time_total for e in profiler.events() if e.cpu_parent is None) / 1e6
    assert sum(work.time_s for work in cpu_works(profiler.events())) == pytest.approx(top_s)


def event(name, start_us, end_us, device_type=DeviceType.CPU, **options):
    place = {"thread": 1, "start_us": start_us, "end_us": end_us, "device_type": device_type, "use_device": "cuda"}
    return FunctionEvent(id=0, name=name, **place, **options)


def gpu_events():
    """Events: two operators that launch three kernels, a range, a wait for data, and a kernel without a launch."""
    range_ = event("feed-forward", 0, 10, is_user_annotation=True)
    matrix_product = event("aten::mm", 1, 4)
    matrix_product.kernels += [Kernel("nvjet", 0, 30.0), Kernel("splitK", 0, 5.0)]
    range_.kernels += [Kernel("feed-forward", 0, 50.0)]  # the range on the GPU's timeline
    outside = event("aten::copy_", 11, 12)
    outside.kernels += [Kernel("Memcpy DtoD", 0, 7.0)]
    wait = event("enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", 20, 120)
    cuda = DeviceType.CUDA
    on_device = [event("nvjet", 100, 130, cuda), event("splitK", 130, 135, cuda), event("Memcpy DtoD", 140, 147, cuda)]
    on_device += [event("feed-forward", 95, 145, cuda, is_user_annotation=True), event("flash_fwd", 150, 161, cuda)]
    events = EventList([range_, matrix_product, outside, wait, *on_device], use_device="cuda")
    events._build_tree()
    return events


def test_kernels_belong_to_what_launched_them_and_each_counts_once():
    seconds = time_by_group(gpu_works(gpu_events()))
    expected = {"data wait": 100e-6, "feed-forward": 35e-6, "attention": 11e-6, "copies": 7e-6}
    assert seconds == pytest.approx(expected)


@pytest.fixture
def data(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(12, seed=1), "1")
    write_split(tmp_path / "corpus", "dev", random_texts(3, seed=2), "2")
    corpus = str(tmp_path / "corpus")
    return LibriSpeechDataModule(corpus, ["train"], ["dev"], batch_seconds=4, device_seconds=2, num_workers=0)


def fit(tmp_path, data, console=None, **options):
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu", callbacks=[Profile(console)] if console else [], logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, layerdrop=0.0)
    trainer.fit(module, datamodule=data)
    return module


def test_a_run_prints_its_groups_and_leaves_a_trace(tmp_path, data, monkeypatch):
    output, audio_s = io.StringIO(), [0.0]
    monkeypatch.setattr(Wav2Vec2CTC, "on_train_batch_end", functools.partialmethod(note_audio, audio_s), raising=False)
    profiled = fit(tmp_path, data, Console(file=output, width=120), max_epochs=2)
    lines = output.getvalue().splitlines()
    rows = {line[:24].strip(): line.split()[-2:] for line in lines if line.endswith(("%", "%  "))}
    assert {"optimiser", "data wait"} <= set(rows)
    assert 50 < sum(float(share.rstrip("%")) for _, share in rows.values()) <= 101
    monkeypatch.undo()
    of_last_s = sum(audio_s[-1 - NUM_STEPS : -1])
    assert re.search(rf"{NUM_STEPS} steps of \S+ ms, {of_last_s / NUM_STEPS:.1f} s of audio each", output.getvalue())
    (trace,) = tmp_path.rglob("trace.json.gz")
    assert not list(tmp_path.glob(".*trace*"))
    names = {entry.get("name") for entry in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"forward", "backward"} <= names
    assert sum(name.startswith("ProfilerStep#") for name in names if name) == NUM_STEPS
    assert "training_step" not in vars(profiled)  # the module is restored
    plain = fit(tmp_path, data, max_epochs=2)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, profiled.state_dict()[name])


def note_audio(self, audio_s, outputs, batch, batch_idx):
    audio_s[-1] += batch.audio_seconds
    if batch.is_last_of_step:
        audio_s.append(0.0)


def test_a_run_that_is_too_short_says_so_before_it_begins(tmp_path, data):
    with pytest.raises(InputError, match=r"needs 4 optimiser steps, the run has 3: raise trainer\.max_steps\."):
        fit(tmp_path, data, Console(file=io.StringIO()), max_steps=3)


def test_a_run_that_ends_early_leaves_no_half_of_a_profile(tmp_path, data, monkeypatch):
    monkeypatch.setattr(Wav2Vec2CTC, "on_train_batch_end", interrupt_in_step_3, raising=False)
    output = io.StringIO()
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path, data, Console(file=output), max_steps=4)
    assert output.getvalue() == ""
    assert not list(tmp_path.rglob("trace.json*"))
    monkeypatch.undo()
    fit(tmp_path, data, Console(file=output), max_steps=4)  # the profiler was closed, so it can be started again
    assert "3 steps of" in output.getvalue()


def interrupt_in_step_3(self, *_):
    if self.trainer.global_step == 3:
        raise RuntimeError("pulled the plug")


@pytest.fixture
def config(tmp_path, data):
    options = {"batch_seconds": 4, "device_seconds": 4, "num_workers": 0}
    config = {
        "model": {"pretrained": None, "config": TINY_CONFIG},
        "data": {"root": data.root, "train_splits": ["train"], "val_splits": ["dev"], **options},
        "trainer": {"max_steps": 4, "default_root_dir": str(tmp_path / "runs"), "accelerator": "cpu"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_on_the_command_line_a_word_is_enough(config, tmp_path, capsys):
    assert main(["fit", "--config", config, "--profile"]) == 0
    assert "3 steps of" in capsys.readouterr().out
    (trace,) = (tmp_path / "runs").rglob("trace.json.gz")
    assert (trace.parent / "throughput.json").exists()


@pytest.mark.parametrize(("options", "expected"), [((), False), (("--profile", "true"), True)])
def test_the_option_as_a_config_has_it(config, capsys, options, expected):
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, *options, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["profile"] is expected
