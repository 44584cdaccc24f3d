"""Typed options of both modules: the values of the constructors' arguments, under the same names and types."""

from dataclasses import FrozenInstanceError, fields
from inspect import signature
from typing import get_type_hints

import pytest
import torch
from tiny import TINY_CONFIG

from w2v_lightning import Wav2Vec2CTC, Wav2Vec2Pretraining
from w2v_lightning.module import FineTuningOptions
from w2v_lightning.pretraining import PretrainingOptions

PAIRS = [(Wav2Vec2CTC, FineTuningOptions), (Wav2Vec2Pretraining, PretrainingOptions)]
CHECKPOINTS_ADD = {"config", "lora"}  # checkpoints hold mappings, so the options have wider types


@pytest.mark.parametrize(("module", "options"), PAIRS)
def test_an_option_has_the_type_of_the_constructors_argument(module, options):
    arguments, declared = get_type_hints(module.__init__), get_type_hints(options)
    for name in {field.name for field in fields(options)} - CHECKPOINTS_ADD:
        assert declared[name] == arguments[name], name


@pytest.mark.parametrize(("module", "options"), PAIRS)
def test_options_hold_the_arguments_and_do_not_change(module, options):
    built = module(None, TINY_CONFIG, learning_rate=1.5, seed=7)
    assert type(built.options) is options
    assert (built.options.learning_rate, built.options.seed) == (1.5, 7)
    defaults = {name: parameter.default for name, parameter in signature(module.__init__).parameters.items()}
    assert built.options.layerdrop == defaults["layerdrop"] == built.model.config.layerdrop
    with pytest.raises(FrozenInstanceError):
        built.options.seed = 8


@pytest.mark.parametrize(("module", "options"), PAIRS)
def test_a_checkpoint_holds_the_arguments_flat_and_as_plain_values(module, options, tmp_path):
    built = module(None, TINY_CONFIG, learning_rate=1.5)
    assert set(built.hparams) == set(signature(module.__init__).parameters) - {"self", "speed"}
    torch.save(dict(built.hparams), tmp_path / "hparams.pt")
    loaded = torch.load(tmp_path / "hparams.pt", weights_only=True)
    assert module(**loaded).options == built.options


def test_a_trial_trains_all_layers():
    built = Wav2Vec2CTC(None, TINY_CONFIG, freeze_updates=9, layerdrop=0.5)
    built.train_all_layers()
    assert (built.options.freeze_updates, built.model.config.layerdrop) == (0, 0.0)
    assert built.hparams.freeze_updates == 9
