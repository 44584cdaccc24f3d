"""Options that differ between a checkpoint and the run that resumes from it, and what each difference means.

Every option of `fit` has an effect here, also those of Lightning's Trainer and of our callbacks; a test goes through
all of them, and fails for a new one until it is added.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import yaml

MAX_SHOWN = 200  # characters of a value in a message
ABSENT = "absent"  # value of a callback that is not in trainer.callbacks


class Effect(Enum):
    """Meaning of an option that has changed since the checkpoint."""

    REFUSED = "another experiment: refused, unless the run starts from the path of the checkpoint"
    ANNOUNCED = "a change of the experiment that may be intended: reported with old and new value"
    PLANNED = "a change of the data or its plan: refused by the data module (data/position.py)"
    FREE = "a property of the machine, of files or of the output: the training is the same"


def _names(section: str, names: str) -> list[str]:
    return [f"{section}.{name}" for name in names.split()]


_REFUSED = [
    *("task",),
    *_names("model", "pretrained config vocabulary target_lang adapter_only lora freeze_feature_encoder normalise"),
    *_names("model", "learning_rate warmup hold final_lr_scale decay layer_lr_decay freeze_updates"),
    *_names("model", "adam_betas adam_eps weight_decay loss_average hf_compat seed"),
    *_names("model", "mask_time_prob mask_time_length mask_channel_prob mask_channel_length"),
    *_names("model", "layerdrop activation_dropout attention_dropout hidden_dropout feat_proj_dropout final_dropout"),
    *_names("model", "num_negatives gumbel_temperature diversity_weight feature_penalty feature_grad_mult"),
    *_names("model", "feat_quantizer_dropout"),
    *_names("data", "text augmentation"),
    *_names("trainer", "gradient_clip_val gradient_clip_algorithm"),
    *_names("trainer.callbacks", "MovingAverage"),
]

_ANNOUNCED = [
    # Where training ends, which the learning rate schedule follows.
    *_names("trainer", "max_epochs min_epochs max_steps min_steps max_time limit_train_batches"),
    # What is scored, how often, and which model is the best.
    *_names("data", "val_splits"),
    *_names("trainer", "limit_val_batches val_check_interval check_val_every_n_epoch"),
    *_names("checkpoint", "monitor mode save_top_k every_n_epochs every_n_train_steps train_time_interval"),
    # Rounding, which may change with the machine: precision is chosen by the device, if it is not given.
    *_names("trainer", "precision strategy.gradient_compression"),
    *_names("data", "augmentation.noise_folder"),  # the same files may have moved
    *_names("trainer", "callbacks plugins sync_batchnorm"),
]

_PLANNED = _names("data", "train_splits batch_seconds max_seconds seed strict skip_unusable duration_spread")

_FREE = [
    *("config", "seed_everything"),  # it is compared as model.seed and data.seed
    *("profile", "resume", "ckpt_path", "weights_only", "checkpoint_every", "checkpoint_keep"),
    *_names("model", "gradient_checkpointing speed"),
    *_names("data", "root test_splits device_seconds num_workers cache_dir cache_gib verify_audio allow_changed_data"),
    *_names("model", "text"),  # it is compared as data.text
    *_names("trainer", "accelerator strategy devices num_nodes logger fast_dev_run default_root_dir model_registry"),
    *_names("trainer", "limit_test_batches limit_predict_batches overfit_batches num_sanity_val_steps"),
    *_names("trainer", "log_every_n_steps enable_checkpointing enable_progress_bar enable_model_summary"),
    *_names("trainer", "accumulate_grad_batches"),  # it follows from the plan and the number of devices
    *_names("trainer", "deterministic benchmark inference_mode use_distributed_sampler profiler detect_anomaly"),
    *_names("trainer", "barebones reload_dataloaders_every_n_epochs enable_autolog_hparams"),
    *_names("checkpoint", "dirpath filename verbose save_last save_on_exception save_weights_only"),
    *_names("checkpoint", "auto_insert_metric_name save_on_train_epoch_end enable_version_counter"),
    *_names("trainer.callbacks", "AverageBest BestCheckpoint Diagnosis ExportBest MemoryWatch MetricLines"),
    *_names(
        "trainer.callbacks", "ModelHandover PassClock PredictionWriter Preemption Profile RecentCheckpoints RunHistory"
    ),
    *_names("trainer.callbacks", "RunProgress RunSummary SaveConfig Throughput"),
    *_names("trainer.callbacks", "DeviceStatsMonitor LearningRateMonitor ModelSummary RichModelSummary"),
    *_names("trainer.callbacks", "RichProgressBar TQDMProgressBar"),
]

EFFECTS: dict[str, Effect] = {
    **dict.fromkeys(_REFUSED, Effect.REFUSED),
    **dict.fromkeys(_ANNOUNCED, Effect.ANNOUNCED),
    **dict.fromkeys(_PLANNED, Effect.PLANNED),
    **dict.fromkeys(_FREE, Effect.FREE),
}

_CALLBACKS = "trainer.callbacks"
_WITHOUT_DEFAULTS = ("model.config",)  # mappings in which a missing key is a value, too


def effect_of(name: str) -> Effect:
    """Return the effect of an option, or of a part of one, such as "data.augmentation.speeds"."""
    parts = name.split(".")
    prefixes = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    unknown = Effect.REFUSED if parts[0] == "model" else Effect.ANNOUNCED  # an option of a user's own class
    return next((EFFECTS[prefix] for prefix in prefixes if prefix in EFFECTS), unknown)


@dataclass(frozen=True)
class Change:
    """Option whose value `was` another one in the checkpoint than it `is` now."""

    name: str
    was: Any
    is_: Any

    @property
    def effect(self) -> Effect:
        return effect_of(self.name)

    def __str__(self) -> str:
        return f"{self.name} was {_shown(self.was)}, is {_shown(self.is_)}"


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, by names such as "trainer.max_steps"; none of them: nothing is compared.

    Args:
        values: all options, from `by_name`.
        defaults: the same with their default values, which stand for options that an earlier version did not have.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def changes_since(self, checkpoint: Mapping[str, Any]) -> list[Change]:
        """Return the differences from the options of the run that wrote a checkpoint, for those that it holds."""
        config, hyper_parameters = _config(checkpoint), checkpoint.get("hyper_parameters", {})
        added = {name: default for name, default in self.defaults.items() if _is_held(name, config, hyper_parameters)}
        then = added | by_name(config, hyper_parameters)
        pairs = [(name, then[name], value) for name, value in self.values.items() if name in then]
        return [change for pair in pairs for change in _differences(*pair)]


def by_name(config: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by their names.

    Args:
        config: all options of `fit`, as `--print_config` prints them.
        hyper_parameters: those of the module, instead of the section `model`: they hold the vocabulary itself.
    """
    sections = {section: value for section, value in config.items() if isinstance(value, Mapping)}
    values = {f"{section}.{name}": each for section, value in sections.items() for name, each in value.items()}
    values |= {name: value for name, value in config.items() if name not in sections}
    for name, read in _READERS.items():
        if name in values:
            values[name] = read(values[name])
    values = {name: value for name, value in values.items() if not name.startswith("model.")}
    return values | {f"model.{name}": value for name, value in hyper_parameters.items() if name != "_instantiator"}


def _config(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config in a checkpoint; {} if it was not written by the command `fit`."""
    try:
        config = yaml.safe_load(checkpoint.get("run", {}).get("config") or "{}")
    except yaml.YAMLError:
        return {}
    return config if isinstance(config, dict) else {}


def _is_held(name: str, config: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> bool:
    return bool(hyper_parameters if name.startswith("model.") else config)


def _differences(name: str, was: Any, is_: Any) -> Iterator[Change]:
    """Yield the parts of an option that differ; a part that one of two mappings lacks has its default in both."""
    if isinstance(was, Mapping) and isinstance(is_, Mapping) and name not in _WITHOUT_DEFAULTS:
        names = was.keys() | is_.keys() if name == _CALLBACKS else was.keys() & is_.keys()
        for part in sorted(names):
            yield from _differences(f"{name}.{part}", was.get(part, ABSENT), is_.get(part, ABSENT))
    elif _comparable(was) != _comparable(is_) and effect_of(name) in (Effect.REFUSED, Effect.ANNOUNCED):
        yield Change(name, was, is_)


def _strategy(value: Any) -> dict[str, Any]:
    """Return what of a strategy concerns the training: gradients that are compressed are rounded."""
    arguments = value.get("init_args") if isinstance(value, Mapping) else None
    return {"gradient_compression": (arguments or {}).get("gradient_compression", "none")}


def _callbacks(value: Any) -> dict[str, Any]:
    """Return the options of callbacks by the names of their classes."""
    callbacks = value if isinstance(value, list) else [value]
    named = [callback for callback in callbacks if isinstance(callback, Mapping)]
    return {str(each.get("class_path")).rpartition(".")[2]: each.get("init_args") or {} for each in named}


_READERS = {"trainer.strategy": _strategy, _CALLBACKS: _callbacks}


def _comparable(value: Any) -> str:
    """Serialise a value for comparison: a tuple equals a list, and 10 equals 10.0."""
    return json.dumps(_plain(value), default=str, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
