"""Collective operations of two processes in training steps and validations."""

import json

import forked
import pytest
import torch
import torch.distributed as dist
from corpus import random_texts, write_split
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from tiny import TINY_CONFIG

from w2v_lightning import LibriSpeechDataModule, Wav2Vec2CTC
from w2v_lightning.errors import InputError
from w2v_lightning.strategies.ddp import PlannedDDPStrategy
from w2v_lightning.strategies.fsdp2 import FSDP2Strategy

LOG_EVERY_N_STEPS = 3
COLLECTIVES = (
    *("all_reduce", "all_gather", "broadcast", "all_gather_object", "broadcast_object_list", "barrier"),
    *("all_gather_into_tensor", "reduce", "gather", "monitored_barrier", "_broadcast_coalesced"),
)


class Exchanges(Callback):
    """Callback that records the names of the collective operations; "bucket" is a bucket of gradients."""

    def __init__(self):
        self.seen, self.steps, self.validations = [], [], []
        for name in COLLECTIVES:
            setattr(dist, name, self.counting(name, getattr(dist, name)))

    def counting(self, name, function):
        def counted(*args, **kwargs):
            self.seen.append(name)
            return function(*args, **kwargs)

        return counted

    def take(self):
        seen, self.seen = self.seen, []
        return seen

    def bucket(self, state, bucket):
        self.seen.append("bucket")
        mean = bucket.buffer().div_(dist.get_world_size())
        return dist.group.WORLD.allreduce([mean]).get_future().then(lambda done: done.value()[0])

    def on_train_start(self, trainer, module):
        trainer.strategy.model.register_comm_hook(None, self.bucket)

    def on_train_batch_start(self, *_):
        self.take()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append([batch.is_last_of_step, self.take()])

    def on_validation_start(self, trainer, *_):
        self.take()

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self.validations.append(self.take())


def train(folder, options):
    seed_everything(1)
    exchanges = Exchanges()
    module = Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False, layerdrop=0.4, **options)
    data = LibriSpeechDataModule(
        str(folder / "corpus"), ["train"], ["a", "b"], batch_seconds=9, device_seconds=3.3, num_workers=0
    )
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=2, default_root_dir=folder, logger=False,
        log_every_n_steps=LOG_EVERY_N_STEPS, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[exchanges], strategy=PlannedDDPStrategy(bucket_cap_mb=0.1),
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        (folder / "exchanges.json").write_text(json.dumps([exchanges.steps, exchanges.validations]))


def exchanges(tmp_path, **options):
    """Return [is last micro-batch of its step, collective operations] of each micro-batch, and the collective
    operations of each validation."""
    for number, split in enumerate(("train", "a", "b")):
        write_split(tmp_path / "corpus", split, random_texts(18 if split == "train" else 4, seed=number), str(number))
    processes = forked.start(tmp_path, train, tmp_path, options, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)
    return json.loads((tmp_path / "exchanges.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"freeze_updates": 3, "gradient_checkpointing": True}])
def test_only_the_last_micro_batch_of_a_step_and_the_end_of_a_validation_exchange_anything(tmp_path, options):
    micro_batches, validations = exchanges(tmp_path, **options)
    assert all(not seen for is_last, seen in micro_batches if not is_last)  # no_sync
    steps = [seen for is_last, seen in micro_batches if is_last]
    assert len(micro_batches) == 2 * len(steps)
    assert steps[0] == ["bucket"]  # torch knows the order of gradients after the first step
    num_buckets = steps[1].count("bucket")
    assert num_buckets > 1
    for number, seen in enumerate(steps[1:], start=2):
        logged = ["all_reduce"] if number % LOG_EVERY_N_STEPS == 0 else []
        assert seen == logged + ["bucket"] * num_buckets
    assert validations == [["all_reduce"]] * 2  # two epochs, each with two splits


class OneWeight(LightningModule):
    """Module whose gradient, 1 + 2^-10, can be represented in float16, but not in bfloat16."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.tensor([1 + 2**-10]))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.fixture
def no_group_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("compression", "expected"), [("none", 1 + 2**-10), ("bf16", 1), ("fp16", 1 + 2**-10)])
def test_gradients_are_as_exact_as_what_they_travel_in(tmp_path, no_group_left, compression, expected):
    trainer = Trainer(
        max_steps=1, accelerator="cpu", devices=1, strategy=PlannedDDPStrategy(compression), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = OneWeight()
    trainer.fit(module)
    assert -module.weight.item() == expected
    assert module.weight.grad._is_view()  # a view of the communicated bucket


def test_an_unknown_compression_is_refused():
    with pytest.raises(InputError, match="gradient_compression is 'int8'; choose from none, bf16, fp16"):
        PlannedDDPStrategy("int8")


def check_reduce():
    dist.init_process_group("gloo")
    reduce = PlannedDDPStrategy().reduce
    value = torch.tensor([1.0, 4.0]) * (1 + dist.get_rank())
    operations = ("mean", "avg", dist.ReduceOp.AVG, "sum", dist.ReduceOp.SUM, "min", dist.ReduceOp.MAX)
    results = [reduce(value.clone(), reduce_op=operation).tolist() for operation in operations]
    assert results == [[1.5, 6.0]] * 3 + [[3.0, 12.0]] * 2 + [[1.0, 4.0], [2.0, 8.0]]
    assert reduce(value) is value  # in place, as Lightning's
    assert value.tolist() == [1.5, 6.0]
    assert reduce("no tensor") == "no tensor"
    dist.destroy_process_group()


@pytest.mark.slow
def test_reduce_knows_every_operation_and_leaves_the_rest_alone(tmp_path):
    processes = forked.start(tmp_path, check_reduce, ranks=2)
    assert forked.ended(processes, tmp_path) == [0, 0], forked.logs(tmp_path)


def test_fsdp2_is_refused_where_torch_is_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(InputError, match=r"trainer\.strategy=fsdp2 needs torch 2\.6 or later, found 2\.5\.1"):
        FSDP2Strategy().setup_environment()
