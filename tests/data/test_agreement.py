"""Loaders of a data module that was set up without the trainer or for another model, and a second data module."""

import pytest
from tiny import TINY_CONFIG, data, trainer, write_corpus

from w2v_lightning import Wav2Vec2CTC
from w2v_lightning.data import agreement
from w2v_lightning.data.batch import InputSpec
from w2v_lightning.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def module():
    return Wav2Vec2CTC(None, TINY_CONFIG, freeze_feature_encoder=False)


def bare(corpus, module, monkeypatch, **options):
    """Set a data module up without a trainer, but with the module's input."""
    datamodule = data(corpus, **options)
    monkeypatch.setattr(datamodule, "_input_spec", lambda: module.input_spec)
    datamodule.setup("fit")
    return datamodule


def run(tmp_path, **options):
    return trainer(tmp_path, max_steps=1, enable_checkpointing=False, **options)


def test_a_bare_loader_of_several_micro_batches_is_refused_before_the_first_step(corpus, module, tmp_path, monkeypatch):
    datamodule = bare(corpus, module, monkeypatch, device_seconds=7)
    fit = run(tmp_path)
    with pytest.raises(InputError, match=r"has 3 micro-batches, but accumulate_grad_batches of .* is 1\. Pass"):
        fit.fit(module, datamodule.train_dataloader(), datamodule.val_dataloader())
    assert fit.global_step == 0


def test_a_bare_loader_trains_whole_steps_where_the_trainer_is_told_to(corpus, tmp_path, monkeypatch):
    losses = []
    for options, accumulate in (({"device_seconds": 7}, 3), ({}, 1)):
        module = Wav2Vec2CTC(None, TINY_CONFIG)
        for parameter in module.model.lm_head.parameters():
            parameter.data.zero_()  # so that the first loss depends on the utterances alone
        datamodule = bare(corpus, module, monkeypatch, **options)
        fit = run(tmp_path, accumulate_grad_batches=accumulate, log_every_n_steps=1)
        fit.fit(module, datamodule.train_dataloader(), datamodule.val_dataloader())
        losses.append(float(fit.callback_metrics["train_loss"]))
        assert fit.global_step == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_bare_loader_without_the_model_is_refused(corpus, module, tmp_path):
    datamodule = data(corpus)
    datamodule.setup("fit")
    with pytest.raises(InputError, match=r"for a model with another conv_kernel, .*spec_augment\. Pass"):
        run(tmp_path, num_sanity_val_steps=0).fit(module, datamodule.train_dataloader())


@pytest.mark.parametrize("single", [False, True])
def test_scoring_data_of_another_model_is_refused(corpus, module, tmp_path, single):
    datamodule = data(corpus)
    datamodule.setup("validate")
    loaders = datamodule.val_dataloader()
    with pytest.raises(InputError, match="for a model with another conv_kernel"):
        run(tmp_path).validate(module, loaders[0] if single else loaders)


def test_data_for_another_number_of_devices_is_refused(corpus, module, tmp_path, monkeypatch):
    datamodule = bare(corpus, module, monkeypatch)
    fit = run(tmp_path)
    monkeypatch.setattr(type(fit), "world_size", 2)
    with pytest.raises(InputError, match=r"split over 1 device\(s\), but the trainer has 2"):
        agreement.check_training_loader(fit, datamodule.train_dataloader())


def test_loaders_of_others_are_left_alone(tmp_path):
    agreement.check_training_loader(run(tmp_path), [1, 2])
    agreement.check_input([[1], None], InputSpec())


def test_a_second_data_module_sets_its_own_number_of_micro_batches(corpus, module, tmp_path):
    fit = run(tmp_path)
    numbers = []
    for device_seconds in (7, 4, 20):
        fit.fit(module, datamodule=data(corpus, device_seconds=device_seconds))
        numbers.append(fit.accumulate_grad_batches)
    assert numbers == [3, 6, 1]


def test_a_number_that_the_user_set_is_still_refused(corpus, module, tmp_path):
    fit = run(tmp_path, accumulate_grad_batches=3)
    fit.fit(module, datamodule=data(corpus, device_seconds=7))  # it is right
    with pytest.raises(InputError, match=r"trainer\.accumulate_grad_batches is 3, but .* makes it 6"):
        fit.fit(module, datamodule=data(corpus, device_seconds=4))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_weights_in_half_precision_are_refused_in_one_line(corpus, module, tmp_path, precision, command):
    plain = run(tmp_path, precision=precision)
    with pytest.raises(InputError, match=rf"trainer\.precision is {precision}, .*Use bf16-mixed"):
        getattr(plain, command)(module, datamodule=data(corpus))
