"""Work of a step and of an epoch, and the audio that a GPU holds."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sample_job import FULL_CONFIG as CONFIG
from synthetic_study import EPOCH, cpu, parameters, runs, t4

from w2v_lightning.errors import InputError
from w2v_lightning.planner import workload
from w2v_lightning.planner.candidates import Candidate
from w2v_lightning.planner.workload import PlannedEpoch


def test_with_durations_a_step_is_that_of_the_plan():
    durations_s = np.array([4.0] * 192 + [8.0] * 96)
    epoch = PlannedEpoch(durations_s, 384.0, 1.05, "m.jsonl")
    assert epoch.steps == 4  # two of 96 x 4 s, and two of 48 x 8 s
    assert epoch.step_on(1, 384.0) == workload.Step(384.0, 384.0, 1)
    assert epoch.step_on(8, 24.0) == workload.Step(384.0, 384.0, 2)
    uneven = epoch.step_on(5, 384.0)  # at most 20 of 96 and 10 of 48: one device has more than its share
    assert uneven.computed_s == pytest.approx(5 * 80)
    with pytest.raises(InputError, match="longest utterance"):
        epoch.step_on(1, 5.0)
    assert "288 utterances, 0.4267 h" in epoch.basis
    assert "m.jsonl" in epoch.basis


def test_with_hours_a_step_is_like_those_of_runs():
    setups = [t4(1), t4(1, computed_s=400.0, audio_s=300.0)]
    found = workload.assumed_epoch(50, 1600.0, runs(parameters(setups), setups))
    assert (found.fill, found.padded) == (pytest.approx(0.975), pytest.approx(1600 / 1560))
    assert found.steps == math.ceil(50 * 3600 / 1560)
    assert found.utterance_s == pytest.approx(12.3, rel=0.01)
    assert "1 studied run with 1600 s per step" in found.basis


def test_steps_of_an_older_plan_say_nothing_of_todays():
    older = runs(parameters([t4(1)]), [t4(1)])
    for run in older:
        del run.throughput["workload"]["plan_version"]
    assert "LibriSpeech" in workload.assumed_epoch(50, 1600.0, older).basis


def test_steps_of_another_size_are_as_librispeechs_would_be():
    found = workload.assumed_epoch(50, 1600.0, runs(parameters([cpu(1)]), [cpu(1)]))
    assert 0.85 < found.fill < 1
    assert 1 < found.padded < 1.05
    assert found.utterance_s == pytest.approx(12.7, rel=0.02)
    assert "LibriSpeech" in found.basis
    assert workload.assumed_epoch(50, 60.0, []).fill < found.fill


def test_no_device_has_less_than_an_utterance():
    """With 127 utterances per step, 254 devices compute as much as with twice the audio."""
    audio_s = 100 * 3600 / EPOCH.steps
    full, idle = EPOCH.step_on(64, 200), EPOCH.step_on(round(2 * audio_s / 12.3), 200)
    assert full.computed_s == pytest.approx(audio_s * 1.025)
    assert idle.computed_s == pytest.approx(2 * full.computed_s, rel=0.01)


def machine_of(name):
    return Candidate(name, 1, False, "x").machine


def with_seconds(seconds, model=None, batch_seconds=1600.0, **trainer):
    data = CONFIG["data"] | {"device_seconds": seconds, "batch_seconds": batch_seconds}
    return CONFIG | {"data": data, "model": model or CONFIG["model"], "trainer": CONFIG["trainer"] | trainer}


def test_device_seconds_are_the_configs_or_those_of_a_run_or_by_memory():
    known = runs(parameters([t4(1)]), [t4(1)])  # 100 s
    seconds = partial(workload.device_seconds, runs=known)
    auto = with_seconds("auto")
    t4_machine, a10g_machine, h200_machine = map(machine_of, ("ml.g4dn.xlarge", "ml.g5.xlarge", "ml.p5en.48xlarge"))
    assert seconds(t4_machine, 1, with_seconds(200)) == 200
    assert seconds(t4_machine, 1, auto) == 100
    assert seconds(t4_machine, 1, with_seconds("auto", {"pretrained": "facebook/wav2vec2-xls-r-300m"})) > 100
    assert seconds(a10g_machine, 1, auto) == pytest.approx((0.9 * 24 - 1.4) * 1600 / (24.7 - 1.4), rel=0.02)
    large = with_seconds("auto", {"pretrained": "facebook/wav2vec2-large-lv60"})
    assert seconds(h200_machine, 1, large) == pytest.approx((0.9 * 141 - 4.7) * 1600 / (56.8 - 4.7), rel=0.02)
    assert seconds(a10g_machine, 1, with_seconds("auto", precision="32-true")) < 0.6 * seconds(a10g_machine, 1, auto)


@pytest.mark.parametrize(
    ("name", "config", "found"),
    [
        ("ml.g4dn.xlarge", with_seconds(1600), "micro-batches of 1600 s need about 29 GiB, and the T4 has 16 GiB"),
        ("ml.g6.xlarge", with_seconds(1600, {"pretrained": "facebook/wav2vec2-large"}), "need about 57 GiB"),
        (
            "ml.g6.xlarge",
            with_seconds("auto", {"pretrained": "facebook/wav2vec2-xls-r-2b"}),
            "optimiser state need about 32 GiB, and the L4 has 24 GiB",
        ),
    ],
)
def test_what_no_gpu_of_an_instance_can_hold_is_said(name, config, found):
    with pytest.raises(InputError, match=found):
        workload.device_seconds(machine_of(name), 1, config, [])


def test_what_has_room_is_let_through():
    fixed, two_b = with_seconds(1600), with_seconds("auto", {"pretrained": "facebook/wav2vec2-xls-r-2b"})
    assert workload.device_seconds(machine_of("ml.g4dn.12xlarge"), 4, fixed, []) == 1600  # each GPU gets 400 s
    checkpointed = with_seconds(1600, CONFIG["model"] | {"gradient_checkpointing": True})
    assert workload.device_seconds(machine_of("ml.g4dn.xlarge"), 1, checkpointed, []) == 1600
    sharded = two_b | {"trainer": two_b["trainer"] | {"strategy": "fsdp2"}}
    assert workload.device_seconds(machine_of("ml.g6.12xlarge"), 4, sharded, []) > 20
    small = with_seconds(1600, {"pretrained": None, "config": {"hidden_size": 64, "num_hidden_layers": 2}})
    assert workload.device_seconds(machine_of("ml.g4dn.xlarge"), 1, small, []) == 1600


def test_the_model_is_counted_without_its_weights():
    model = workload.model_of(CONFIG, 12.3)
    assert model.gradient_bytes == pytest.approx(4 * 90.2e6, rel=0.01)  # 94.4 M without the feature encoder
    assert model == replace(workload.BASE, flops_per_audio_s=model.flops_per_audio_s)
    assert model.flops_per_audio_s == pytest.approx(workload.BASE.flops_per_audio_s, rel=0.01)
    large = workload.model_of(CONFIG | {"model": {"pretrained": "facebook/wav2vec2-large-lv60"}}, 12.3)
    assert large.gradient_bytes == pytest.approx(4 * 311e6, rel=0.02)
    assert large.flops_per_audio_s > 2.5 * model.flops_per_audio_s


def test_the_model_is_counted_at_its_sample_rate(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 8000}')
    model = workload.model_of(CONFIG | {"model": {"pretrained": str(tmp_path)}}, 12.3)
    assert model.flops_per_audio_s == pytest.approx(workload.BASE.flops_per_audio_s / 2, rel=0.1)
