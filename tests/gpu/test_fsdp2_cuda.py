"""Weights sharded across two GPUs: `W2V_TEST_GPUS=0,1 pytest -n 0 -m gpu tests/gpu/test_fsdp2_cuda.py -s`."""

import json

import pytest
import running
import torch
import witness
from corpus import random_texts, write_split
from tiny import TINY_CONFIG

pytestmark = pytest.mark.gpu
NUM_STEPS = 20
LARGER = TINY_CONFIG | {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}


@pytest.fixture
def corpus(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: W2V_TEST_GPUS=0,1")
    write_split(tmp_path / "corpus", "train", random_texts(60, seed=1), speaker="1")
    write_split(tmp_path / "corpus", "dev", random_texts(9, seed=3), speaker="3")
    return tmp_path / "corpus"


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 2e-2)])
def test_the_same_losses_as_with_ddp_in_less_memory(corpus, precision, tolerance, tmp_path):
    """Layers are compiled, AdamW is one kernel; the model has 12 layers, so that there are weights to shard.

    There is no validation, because each device would hold all weights for it. cuDNN's convolutions use TF32 and are
    not deterministic.
    """
    peak_gib = []
    for strategy in ("ddp", "fsdp2"):
        folder = tmp_path / strategy
        trainer = {"accelerator": "gpu", "devices": 2, "strategy": strategy, "precision": precision}
        trainer |= {"limit_val_batches": 0}
        config = running.config(corpus, folder, NUM_STEPS, gradient_clip_val=0.5, **trainer)
        # With a learning rate of 1e-3 the training of this model is chaotic.
        model = [f"--model.config={json.dumps(LARGER)}", "--model.learning_rate=1e-5"]
        with running.started([*running.FIT, config, *model], folder / "fit.log") as process:
            assert process.wait(running.LIMIT_S) == 0, running.logs(folder)
        (report,) = folder.glob("lightning_logs/*/throughput.json")
        peak_gib.append(json.loads(report.read_text())["peak_memory_gib"])
        print(f"\n{precision}, {strategy}: {peak_gib[-1]:.2f} GiB", flush=True)
        assert len(list(folder.glob("lightning_logs/*/model/model.safetensors"))) == 1
    assert "AccumulateGrad" not in running.logs(tmp_path / "ddp")  # torch's warning if DDP used a side stream
    (_, ddp), (_, fsdp2) = (witness.steps(tmp_path / strategy / "seen") for strategy in ("ddp", "fsdp2"))
    apart = max(abs(fsdp2[step] / ddp[step] - 1) for step in ddp)
    print(f"losses {apart:.0e} apart")
    assert len(ddp) == NUM_STEPS
    assert fsdp2 == pytest.approx(ddp, rel=tolerance)
    assert peak_gib[1] < 0.75 * peak_gib[0]
