"""Options that differ between a checkpoint and the run that resumes from it: every option of `fit`, one by one."""

import contextlib
import importlib
import pkgutil

import pytest
import yaml
from lightning.pytorch import Callback

import w2v_lightning
from w2v_lightning import cli
from w2v_lightning.checkpoints.changes import EFFECTS, Change, Effect, RunOptions, by_name, effect_of

COMMAND = ["fit", "--data.root", "corpus"]
AVERAGE = ["--trainer.callbacks", "w2v_lightning.callbacks.averaging.MovingAverage"]
STOPPING = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val_wer"]
DDP = ["--trainer.strategy", "w2v_lightning.strategies.ddp.PlannedDDPStrategy"]


def resolved(task, *options):
    config = cli.resolve([*COMMAND, "--task", task, *options])
    for section in ("data", "model"):
        config[section].setdefault("seed", config["seed_everything"])  # linked, so no option of its own
    return config


@pytest.fixture(scope="module")
def configs():
    return {task: resolved(task) for task in cli.TASKS}


def checkpoint(config, **hyper_parameters):
    """Build the part of a checkpoint that holds the options, as `fit` writes it."""
    return {
        "hyper_parameters": config["model"] | hyper_parameters | {"_instantiator": "lightning"},
        "run": {"config": yaml.safe_dump(config)},
    }


def run_options(config, defaults=None):
    return RunOptions(by_name(config, config["model"]), by_name(defaults, defaults["model"]) if defaults else {})


def names_of(config):
    """List the options of a config: those of sections by section and name."""
    sections = [name for name in config if isinstance(config[name], dict)]
    inner = [f"{section}.{name}" for section in sections for name in config[section]]
    return [*inner, *(name for name in config if name not in sections)]


def with_value(config, name, value):
    section, _, option = name.rpartition(".")
    return {**config, section: {**config[section], option: value}} if section else {**config, name: value}


def callbacks_of_this_package():
    for module in pkgutil.walk_packages(w2v_lightning.__path__, "w2v_lightning."):
        if "__main__" not in module.name:
            with contextlib.suppress(ImportError):  # of an optional dependency
                importlib.import_module(module.name)
    kinds = [Callback]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__ for kind in kinds if kind.__module__.startswith("w2v_lightning.")}


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", cli.TASKS)
def test_every_option_has_an_effect(configs, task):
    missing = [name for name in names_of(configs[task]) if name not in EFFECTS]
    assert not missing, f"{missing}: say in checkpoints/changes.py what a change means for a run that resumes"


def test_every_callback_has_an_effect():
    missing = [name for name in callbacks_of_this_package() if f"trainer.callbacks.{name}" not in EFFECTS]
    assert not missing, f"{missing}: say in checkpoints/changes.py what a change means for a run that resumes"


def test_the_table_names_no_option_that_does_not_exist(configs):
    known = {name for config in configs.values() for name in names_of(config)} | {"config", "model.text"}
    parts = ("trainer.callbacks.", "data.augmentation.", "trainer.strategy.")
    assert {name for name in EFFECTS if name not in known and not name.startswith(parts)} == set()


def test_no_option_has_two_effects():
    from w2v_lightning.checkpoints import changes

    names = [*changes._REFUSED, *changes._ANNOUNCED, *changes._PLANNED, *changes._FREE]
    assert sorted(names) == sorted(EFFECTS)


# ---- every option, changed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", cli.TASKS)
def test_a_change_of_any_option_is_found_with_both_values(configs, task):
    config = configs[task]
    for name in set(names_of(config)) - {"trainer.callbacks", "trainer.strategy"}:
        changed = with_value(config, name, "another")
        (old,) = [each[name.rpartition(".")[2]] for each in [config[name.split(".")[0]] if "." in name else config]]
        found = run_options(changed).changes_since(checkpoint(config))
        expected = [] if EFFECTS[name] in (Effect.FREE, Effect.PLANNED) else [Change(name, old, "another")]
        assert found == expected, name


def test_nothing_has_changed_in_the_same_command(configs):
    for config in configs.values():
        assert run_options(config).changes_since(checkpoint(config)) == []


@pytest.mark.parametrize(
    ("before", "after", "expected", "effect"),
    [
        (AVERAGE, [], 'trainer.callbacks.MovingAverage was {"decay": 0.999}, is absent', "REFUSED"),
        ([], AVERAGE, 'trainer.callbacks.MovingAverage was absent, is {"decay": 0.999}', "REFUSED"),
        (
            AVERAGE,
            [*AVERAGE, "--trainer.callbacks.decay", "0.9"],
            "trainer.callbacks.MovingAverage.decay was 0.999, is 0.9",
            "REFUSED",
        ),
        ([], STOPPING, "EarlyStopping was", "ANNOUNCED"),
        (["--data.augmentation.speeds", "[0.9, 1.1]"], [], "data.augmentation was {", "REFUSED"),
        (
            ["--data.augmentation.noise_folder", "a"],
            ["--data.augmentation.noise_folder", "b"],
            "data.augmentation.noise_folder was a, is b",
            "ANNOUNCED",
        ),
        ([], ["--trainer.gradient_clip_val", "5"], "trainer.gradient_clip_val was null, is 5", "REFUSED"),
        (["--trainer.max_steps", "6"], ["--trainer.max_steps", "9"], "trainer.max_steps was 6, is 9", "ANNOUNCED"),
        (
            [],
            [*DDP, "--trainer.strategy.gradient_compression", "bf16"],
            "trainer.strategy.gradient_compression was none, is bf16",
            "ANNOUNCED",
        ),
    ],
)
def test_a_change_in_part_of_an_option(before, after, expected, effect):
    (change,) = run_options(resolved("ctc", *after)).changes_since(checkpoint(resolved("ctc", *before)))
    assert expected in str(change)
    assert change.effect is Effect[effect]


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.strategy", "ddp", "--trainer.devices", "4", "--data.device_seconds", "7"],
        ["--trainer.callbacks", "LearningRateMonitor", "--trainer.logger", "false"],
        ["--model.gradient_checkpointing", "true", "--model.speed.compile", "false"],
    ],
)
def test_another_machine_or_output_is_no_change(configs, options):
    assert run_options(resolved("ctc", *options)).changes_since(checkpoint(configs["ctc"])) == []


def test_numbers_and_sequences_are_compared_by_value(configs):
    config = configs["ctc"]
    again = with_value(config, "model.adam_betas", tuple(config["model"]["adam_betas"]))
    assert run_options(with_value(again, "model.weight_decay", 0)).changes_since(checkpoint(config)) == []


# ---- checkpoints of earlier versions, and of other programs ---------------------------------------------------------


def test_an_option_that_an_earlier_version_lacked_had_its_default(configs):
    config = configs["ctc"]
    older = {**config, "model": {**config["model"]}, "data": {**config["data"]}}
    for section, name in (("model", "final_dropout"), ("data", "augmentation")):
        del older[section][name]
    assert run_options(config, defaults=config).changes_since(checkpoint(older)) == []
    changed = with_value(with_value(config, "model.final_dropout", 0.1), "data.augmentation", {"speeds": [0.9]})
    found = run_options(changed, defaults=config).changes_since(checkpoint(older))
    assert sorted(map(str, found)) == [
        'data.augmentation was null, is {"speeds": [0.9]}',
        "model.final_dropout was 0.0, is 0.1",
    ]


def test_of_a_checkpoint_without_a_config_the_hyper_parameters_are_compared(configs):
    config = configs["ctc"]
    other = checkpoint(config, learning_rate=0.5)
    for run in ({}, {"run": {"config": "a: ["}}, {"run": {"config": "[]"}}):
        options = run_options(with_value(config, "trainer.max_steps", 9), defaults=config)
        (change,) = options.changes_since({"hyper_parameters": other["hyper_parameters"], **run})
        assert str(change) == "model.learning_rate was 0.5, is 3e-05"
    assert run_options(config, defaults=config).changes_since({}) == []


@pytest.mark.parametrize(
    ("name", "effect"),
    [("model.mine", "REFUSED"), ("trainer.new_in_lightning", "ANNOUNCED"), ("trainer.callbacks.Mine", "ANNOUNCED")],
)
def test_an_option_of_a_users_class_is_never_passed_over(name, effect):
    assert effect_of(name) is Effect[effect]


def test_a_long_value_is_cut():
    assert len(str(Change("model.vocabulary.tokens", ["a"] * 3000, []))) < 300
