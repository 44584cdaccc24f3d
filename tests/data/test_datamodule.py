import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpus import SAMPLE_RATE, random_texts, write_split
from lightning.pytorch import LightningModule, Trainer

from w2v_lightning.data import datamodule
from w2v_lightning.data.batch import Batch, InputSpec, SpecAugment
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.data.demo import CORPUS_VERSION
from w2v_lightning.data.librispeech import load_split
from w2v_lightning.errors import InputError
from w2v_lightning.text.vocabulary import Vocabulary

NUM_TRAIN, NUM_DEV = 40, 9


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "corpus"
    write_split(root, "train", random_texts(NUM_TRAIN - 4, seed=1), speaker="1")
    write_split(root, "more", random_texts(4, seed=2), speaker="2")
    write_split(root, "dev", random_texts(NUM_DEV, seed=3), speaker="3")
    write_split(root, "test", random_texts(5, seed=4), speaker="4")
    return root


def data_of(root, **options) -> LibriSpeechDataModule:
    settings = {
        "train_splits": ["train", "more"],
        "val_splits": ["dev"],
        "test_splits": ["test"],
        "batch_seconds": 12,
        "device_seconds": 4.5,
        "num_workers": 0,
    }
    return LibriSpeechDataModule(str(root), **settings | options)


def trainer_of(**options) -> Trainer:
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1} | quiet | options)


class Listener(LightningModule):
    """Module that records every batch it receives."""

    def __init__(self, input_spec: InputSpec | None = None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[Batch] = []
        self.validated: list[Batch] = []
        self.tested: list[Batch] = []
        if input_spec:
            self.input_spec = input_spec

    def training_step(self, batch: Batch, _):
        self.trained.append(batch)
        return self.weight * 1

    def validation_step(self, batch: Batch, _):
        self.validated.append(batch)

    def test_step(self, batch: Batch):
        self.tested.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def ids(batches: list[Batch]) -> list[str]:
    return [utterance_id for batch in batches for utterance_id in batch.ids]


def utterances(speaker: int, number: int) -> list[str]:
    return [f"{speaker}-1-{i:04}" for i in range(number)]


ALL_TRAIN = utterances(1, NUM_TRAIN - 4) + utterances(2, 4)


def assert_same(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        same = torch.equal(value, getattr(other, name)) if torch.is_tensor(value) else value == getattr(other, name)
        assert same, f"{name} differs"


def test_fit_sees_every_utterance_once_an_epoch_in_steps_of_the_plan(root):
    data, module = data_of(root), Listener()
    trainer = trainer_of(max_epochs=2)
    trainer.fit(module, data)
    steps, per_step = data.train_sampler.num_steps, data.train_sampler.num_micro_batches
    assert steps > 1
    assert per_step > 1
    assert trainer.accumulate_grad_batches == per_step
    assert trainer.global_step == 2 * steps  # optimiser steps
    epochs = module.trained[: steps * per_step], module.trained[steps * per_step :]
    assert [sorted(ids(epoch)) for epoch in epochs] == [ALL_TRAIN, ALL_TRAIN]
    assert ids(epochs[0]) != ids(epochs[1])
    assert [batch.global_step for batch in epochs[1] if batch.is_last_of_step] == list(range(steps))
    assert sorted(ids(module.validated)) == sorted(utterances(3, NUM_DEV) * 2)


def test_batches_are_the_same_from_any_number_of_workers(root):
    spec = InputSpec(spec_augment=SpecAugment(time_prob=0.65, channel_prob=0.5))
    modules = []
    for num_workers in (0, 2):
        modules.append(Listener(spec))
        trainer_of(max_epochs=2).fit(modules[-1], data_of(root, num_workers=num_workers))
    for kind in ("trained", "validated"):
        first, second = (getattr(module, kind) for module in modules)
        assert len(first) > 2
        assert (first[0].time_mask_BF is not None) == (kind == "trained")
        for pair in zip(first, second, strict=True):
            assert_same(*pair)


def test_number_of_workers_is_found_on_systems_without_processor_affinity(root, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    data, module = data_of(root, num_workers=None), Listener()
    trainer_of().test(module, data, verbose=False)
    assert 1 <= data.test_dataloader()[0].num_workers <= 8
    assert sorted(ids(module.tested)) == utterances(4, 5)


def test_test_splits_are_given_whole_without_touching_the_others(root):
    data, module = data_of(root, train_splits=["nowhere"], val_splits=["nowhere"]), Listener()
    trainer_of().test(module, data, verbose=False)
    assert sorted(ids(module.tested)) == utterances(4, 5)


def test_validate_needs_the_validation_splits_only(root):
    data, module = data_of(root, train_splits=["nowhere"], test_splits=["nowhere"]), Listener()
    trainer_of().validate(module, data, verbose=False)
    assert sorted(ids(module.validated)) == utterances(3, NUM_DEV)


def test_module_may_be_used_without_a_trainer(root):
    data = data_of(root)
    data.prepare_data()
    data.setup()
    assert sorted(ids(list(data.train_dataloader()))) == ALL_TRAIN
    (dev,), (test,) = data.val_dataloader(), data.test_dataloader()
    assert sorted(ids(list(dev))) == utterances(3, NUM_DEV)
    assert sorted(ids(list(test))) == utterances(4, 5)


def test_real_speech_makes_batches_within_the_device(librispeech):
    data = LibriSpeechDataModule(
        str(librispeech), val_splits=["dev-clean"], batch_seconds=200, device_seconds=50, num_workers=0
    )
    data.setup("fit")
    (loader,) = data.val_dataloader()
    batches = list(loader)
    assert len(ids(batches)) == len(set(ids(batches))) == len(data.datasets["dev-clean"])
    for batch in (next(iter(data.train_dataloader())), *batches):
        assert batch.waveforms_BT.numel() <= 1.016 * 50 * SAMPLE_RATE
        assert batch.num_samples_B.max() <= batch.waveforms_BT.shape[1] < 1.016 * batch.num_samples_B.max()
        one_T = batch.input_values()[0, : batch.num_samples_B[0]]
        assert abs(one_T.mean()) < 1e-4
        assert one_T.std() == pytest.approx(1, abs=1e-3)


def test_root_demo_is_the_demo_corpus_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("W2V_LIGHTNING_CACHE", str(tmp_path))
    write_split(tmp_path / f"demo-corpus-v{CORPUS_VERSION}", "train", ["ABBA"])
    data = data_of("demo", test_splits=["train"])
    data.setup("test")
    assert data.datasets["train"].manifest.texts == ["ABBA"]


def test_vocabulary_is_that_of_the_model(root):
    spec = InputSpec(vocabulary=Vocabulary(("<pad>", "|", *"abcde")))
    with pytest.raises(InputError, match=r"train: .* characters outside the vocabulary: .*\(f\)"):
        trainer_of().fit(Listener(spec), data_of(root))


def test_contradicting_accumulation_is_refused_with_the_number_that_follows(root):
    with pytest.raises(InputError) as raised:
        trainer_of(accumulate_grad_batches=77).fit(Listener(), data_of(root))
    data = data_of(root)
    data.setup("fit")
    message = str(raised.value)
    assert "trainer.accumulate_grad_batches is 77, but data.batch_seconds=12 over 1 device(s)" in message
    assert f"data.device_seconds=4.5 makes it {data.train_sampler.num_micro_batches}. Leave it out" in message


def test_only_device_seconds_as_given_may_be_a_share_of_the_step(root, monkeypatch):
    """What calibration found, or was halved because memory ran out, is a limit."""
    given, automatic = data_of(root, device_seconds=6), data_of(root, device_seconds="auto")
    are_shares = []
    sampler = datamodule.TrainSampler

    def recorded(*args, is_share, **options):
        are_shares.append(is_share)
        return sampler(*args, is_share=is_share, **options)

    monkeypatch.setattr(datamodule, "TrainSampler", recorded)
    given.setup("fit")
    automatic.setup("fit")
    automatic.device_seconds = 6.0  # found by calibration
    automatic.setup("fit")
    given.device_seconds /= 1.2  # as training.out_of_memory does
    given.setup("fit")
    assert are_shares == [True, False, False, False]


def test_agreeing_accumulation_is_accepted(root):
    data = data_of(root)
    data.setup("fit")
    number = data.train_sampler.num_micro_batches
    trainer = trainer_of(accumulate_grad_batches=number, limit_val_batches=0)
    trainer.fit(Listener(), data_of(root))
    assert trainer.accumulate_grad_batches == number


def test_long_utterance_is_refused_or_left_out_of_training_but_scored(root):
    for split, speaker in (("train", "8"), ("dev", "9")):
        write_split(root, split, ["A" * 60], speaker=speaker)  # 4.8 s
    with pytest.raises(InputError, match=r"data.device_seconds is 4.5, but the longest utterance lasts 4.80 s"):
        data_of(root).setup("fit")
    data = data_of(root, max_seconds=4)
    data.setup("fit")
    assert len(data.train_dataset) == NUM_TRAIN
    (loader,) = data.val_dataloader()
    assert "9-1-0000" in ids(list(loader))


def test_bad_utterances_stop_the_run_before_it_starts_or_are_left_out(root):
    chapter = write_split(root, "train", ["A", "BAD", "CAB", "BED"], speaker="8")
    (chapter / "8-1.trans.txt").write_text("8-1-0000 A\n8-1-0001 BAD?\n8-1-0002\n8-1-0003 BED\n")
    soundfile.write(chapter / "8-1-0000.flac", np.zeros(399), SAMPLE_RATE)
    (chapter / "8-1-0003.flac").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"8-1-0003.flac \(.*data.skip_unusable=true"):
        data_of(root).setup("fit")
    data = data_of(root, skip_unusable=True)
    data.setup("fit")
    assert sorted(data.train_dataset.manifest.ids) == ALL_TRAIN
    (chapter / "8-1-0003.flac").unlink()
    with pytest.raises(InputError, match=r"train: .*8-1-0000 \(25 ms\).*8-1-0001 \(\?\).*8-1-0002"):
        data_of(root).setup("fit")


def test_strict_refuses_an_incomplete_corpus(root):
    (root / "more" / "2" / "1" / "2-1-0000.flac").unlink()
    data = data_of(root)
    data.setup("fit")
    assert len(data.train_dataset) == NUM_TRAIN - 1
    with pytest.raises(InputError, match="1 utterances whose audio file is missing: 2-1-0000"):
        data_of(root, strict=True).setup("fit")


def test_splits_that_share_an_utterance_are_refused(root):
    with pytest.raises(InputError, match="'1-1-0000' occurs more than once"):
        data_of(root, train_splits=["train", "train"]).setup("fit")


@pytest.mark.parametrize("option", ["batch_seconds", "device_seconds"])
@pytest.mark.parametrize("value", [0, -5, float("nan")])
def test_seconds_must_be_positive(root, option, value):
    with pytest.raises(InputError, match=f"data.{option} must be a positive number of seconds, found {value}"):
        data_of(root, **{option: value})


def save_manifests(root, folder, *splits: str) -> None:
    for split in splits:
        load_split(root, split).save(folder / f"{split}.jsonl")


def test_splits_may_be_manifests(root, tmp_path):
    save_manifests(root, tmp_path, "train", "more", "dev")
    from_folders, from_manifests = Listener(), Listener()
    for module, place in ((from_folders, root), (from_manifests, tmp_path)):
        trainer_of().fit(module, data_of(place))
    for first, second in zip(
        from_folders.trained + from_folders.validated, from_manifests.trained + from_manifests.validated, strict=True
    ):
        assert_same(first, second)


@pytest.mark.parametrize("name", ["{}/train.jsonl", "train.jsonl"])
def test_a_manifest_may_be_named_outright(root, tmp_path, name):
    save_manifests(root, tmp_path, "train")
    data = data_of(tmp_path, train_splits=[name.format(tmp_path)], val_splits=[])
    data.setup("fit")
    assert data.train_dataset.manifest.ids == utterances(1, NUM_TRAIN - 4)


def test_a_manifest_whose_audio_is_gone_is_refused_before_training(root, tmp_path):
    save_manifests(root, tmp_path, "train")
    next((root / "train").rglob("1-1-0003.flac")).unlink()
    data = data_of(tmp_path, train_splits=["train"], val_splits=[])
    with pytest.raises(InputError, match=r"train\.jsonl: 1 of its 36 audio files are missing: .*1-1-0003\.flac"):
        data.setup("fit")


def test_a_shard_that_is_cut_off_is_refused_before_training(root, tmp_path):
    """Train from a tar shard, where the manifest gives the offset of each utterance."""
    manifest = load_split(root, "more")
    bodies = [Path(path).read_bytes() for path in manifest.audio_paths]
    ends = np.cumsum([len(body) for body in bodies])
    sizes = np.array([len(body) for body in bodies])
    (tmp_path / "a.tar").write_bytes(b"".join(bodies))
    sharded = replace(manifest, audio_paths=["a.tar"] * 4, byte_offsets_N=ends - sizes, num_bytes_N=sizes)
    sharded.save(tmp_path / "more.jsonl")
    data = data_of(tmp_path, train_splits=["more"], val_splits=[])
    data.setup("fit")
    assert sorted(ids(list(data.train_dataloader()))) == utterances(2, 4)
    (tmp_path / "a.tar").write_bytes(b"".join(bodies)[:-1])
    with pytest.raises(InputError, match=r"1 of its 1 audio files are shorter than the manifest says: .*/a\.tar\."):
        data.setup("fit")


def test_a_split_that_is_not_there_names_what_is(root, tmp_path):
    folder = tmp_path / "manifests"
    save_manifests(root, folder, "train")
    (folder / "dev").mkdir()
    with pytest.raises(
        InputError, match=r"has no split 'trian', neither .* trian\.jsonl; it holds dev, train\.jsonl\."
    ):
        data_of(folder, train_splits=["trian"]).setup("fit")
