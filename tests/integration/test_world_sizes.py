"""The same training on one, two and three processes: masks, layer drop, gradient checkpointing, DDP as it comes.

In double precision, so that what differs is more than rounding.
"""

import json
import subprocess
import sys

import pytest
from corpus import random_texts, write_split
from tiny import TINY_CONFIG

SCRIPT = """
import json, sys
from lightning.pytorch import Trainer, seed_everything
from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC

root, out, devices, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])

class Recorded(Wav2Vec2CTC):
    losses = []
    def log(self, name, value, *args, **kwargs):
        if name == "train_loss":
            self.losses.append(float(value))

if __name__ == "__main__":
    seed_everything(1)
    module = Recorded(None, json.loads(sys.argv[5]), freeze_feature_encoder=False, learning_rate=1e-3, layerdrop=0.4,
                      activation_dropout=0.0, **options).double()
    data = LibriSpeechDataModule(root, train_splits=["train"], val_splits=[], batch_seconds=9, device_seconds=3.3,
                                 num_workers=0)
    trainer = Trainer(max_steps=8, accelerator="cpu", devices=devices, default_root_dir=out, logger=False,
                      log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False, limit_val_batches=0,
                      strategy="ddp" if devices > 1 else "auto")
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        # The softmax does not see a bias of the keys: its gradient is rounding alone, which Adam makes large.
        weights = [(name, p) for name, p in module.named_parameters() if "k_proj.bias" not in name]
        norms = {name: float(p.detach().double().norm()) for name, p in weights}
        print("RESULT", json.dumps([module.losses, norms]))
"""


def train(tmp_path, devices, **options):
    """Loss of each step, and the norm of each weight at the end."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    config = TINY_CONFIG | {"num_hidden_layers": 3, "feat_extract_norm": "group"}
    arguments = [tmp_path / "corpus", tmp_path, devices, json.dumps(options), json.dumps(config)]
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.slow
def test_losses_and_weights_are_the_same_on_any_number_of_processes(tmp_path):
    write_split(tmp_path / "corpus", "train", random_texts(30, seed=1))
    losses, norms = train(tmp_path, devices=1)
    assert len(losses) == 8
    for devices, options in ((2, {"gradient_checkpointing": True}), (3, {})):
        other_losses, other_norms = train(tmp_path, devices, **options)
        assert other_losses == pytest.approx(losses, rel=1e-6)
        assert other_norms == pytest.approx(norms, rel=1e-6)
