"""fit, validate, test and predict: a LightningCLI around a module, by `task`, and LibriSpeechDataModule."""

import argparse
import logging
import re
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import transformers
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

import w2v_lightning.strategies.fsdp2  # noqa: F401  which makes trainer.strategy=fsdp2 known
from w2v_lightning.callbacks.averaging import AverageBest
from w2v_lightning.callbacks.diagnosis import Diagnosis
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.callbacks.predictions import PredictionWriter
from w2v_lightning.callbacks.preemption import Preempted, Preemption, preemptible
from w2v_lightning.callbacks.progress import RunProgress
from w2v_lightning.callbacks.summary import RunSummary
from w2v_lightning.checkpoints import options as command
from w2v_lightning.checkpoints.best import BestCheckpoint
from w2v_lightning.checkpoints.recent import drain
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.errors import InputError, did_you_mean
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.pretraining import Wav2Vec2Pretraining
from w2v_lightning.runtime.precision import check_precision, choose_precision
from w2v_lightning.strategies.group import leave_group
from w2v_lightning.strategies.launcher import launched, obstacle_to_restarts
from w2v_lightning.strategies.sagemaker_environment import devices_and_hosts
from w2v_lightning.strategies.smddp import SMDDPStrategy
from w2v_lightning.telemetry.profile import Profile
from w2v_lightning.telemetry.throughput import Throughput
from w2v_lightning.text.vocabulary import BUILT_VOCABULARIES, Vocabulary
from w2v_lightning.training import out_of_memory
from w2v_lightning.training.monitors import check_monitors
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)

# What is trained, and what the best model is chosen by.
TASKS = {"ctc": (Wav2Vec2CTC, "val_wer"), "pretraining": (Wav2Vec2Pretraining, "val_loss")}

TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    "num_sanity_val_steps": -1,  # all of it: WER before training, and nothing fails first after an epoch
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # the module says how many parameters it has, in one line
}


def main(args: list[str]) -> None:
    """Run one LightningCLI sub-command with its options, such as ["fit", "--config", "cfg.yaml"]."""
    _quiet_libraries()
    if args == ["fit"]:
        args = ["fit", "--config", str(_demo_config())]
        print(f"No options given: the demo, {args[-1]}. Another run: fit --config YOUR.yaml")
    sys.argv[1:] = args  # LightningCLI warns where its `args` and sys.argv differ
    module, _ = TASKS[task_of(args)]
    try:
        CLI(
            module,
            LibriSpeechDataModule,
            parser_class=Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
        )
    except Preempted:  # so are the others
        leave_group()
        raise
    except MisconfigurationException as error:  # by which Lightning refuses options
        raise InputError(f"Lightning refuses these options: {one_line(str(error))}") from error
    leave_group()


def task_of(args: list[str]) -> str:
    """The task that options or their config files name, the last one counting; `ctc` where none does.

    The parser cannot be built before: the model's options are those of the task's module.

    Raises:
        InputError: there is no such task, or it has no such command.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("-c", "--config", dest="tasks", action="append", nargs="?", type=_task_in_config)
    peek.add_argument("--task", dest="tasks", action="append", nargs="?")
    named = [task for task in peek.parse_known_args(args)[0].tasks or [] if task is not None]
    task = named[-1] if named else "ctc"
    if task not in tuple(TASKS):  # which may be any YAML
        raise InputError(f"task: there is no task {task!r}; choose from {', '.join(TASKS)}.")
    if task == "pretraining" and args[0] == "predict":
        raise InputError("task: a model in pre-training has no words to predict; fine-tune it first (task: ctc).")
    return task


def _task_in_config(path: str) -> object:
    """The `task` of a config file; the parser says what is wrong with one that cannot be read."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return config.get("task") if isinstance(config, dict) else None


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with an option and what would be right."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(f"{one_line(message)}{self._nearest(message)}") from ex

    def _nearest(self, message: str) -> str:
        unknown = re.search(r"(?:[Uu]nrecognized arguments: --|[Kk]ey ['\"]|[Oo]ption ['\"])([\w.-]+)", message)
        if not unknown:
            return ""
        known = [action.dest for action in self._actions]
        for parser in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            known += [action.dest for action in parser._actions]
        return did_you_mean(unknown.group(1), known)


class SaveConfig(SaveConfigCallback):
    """config.yaml, with what is left to defaults, beside the run's other outputs."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = output_folder(trainer)  # asks all ranks
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, self._folder / self.config_filename, skip_none=False, overwrite=True)


class CLI(LightningCLI):
    """What LightningCLI does, and: one seed for all, a precision that suits the device, our callbacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for part in ("data", "model"):
            parser.link_arguments("seed_everything", f"{part}.seed", compute_fn=int)
        task, monitor = next((name, best_by) for name, (kind, best_by) in TASKS.items() if kind is self.model_class)
        parser.add_argument("--task", type=Literal[tuple(TASKS)], default=task, help="what is trained")
        parser.add_argument(
            "--profile", type=bool, nargs="?", const=True, default=False, help="of fit: what a few steps spend time on"
        )
        command.add_options(parser)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": monitor,
                "checkpoint.save_last": False,  # RecentCheckpoints keeps the last ones
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def fit(self, model: LightningModule, datamodule: LibriSpeechDataModule, **options: Any) -> None:
        """What the sub-command runs in the place of `trainer.fit`."""
        check_monitors(self.trainer, model, datamodule.val_splits)
        if not self.trainer.fast_dev_run:
            is_left, options["ckpt_path"] = command.begin(self.trainer, model, self._options)
            if not is_left:
                return
        with preemptible(self.trainer):
            out_of_memory.fit(self.trainer, model, datamodule, **options)
        drain(self.trainer)

    def before_validate(self) -> None:
        """Random weights have a WER too, which looks like that of a bad model."""
        if isinstance(self.model, Wav2Vec2CTC) and self._options.ckpt_path is None:
            self.model.check_head()

    before_test = before_predict = before_validate

    @property
    def _options(self) -> Namespace:
        """All those of the sub-command."""
        return self.config.get(str(self.subcommand), self.config)

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        _check_writable(Path(trainer.default_root_dir))
        _check_accelerator(trainer.accelerator)
        command.check_ckpt_path(str(self.subcommand), self._options)
        if trainer.precision is None:
            trainer.precision, reason = choose_precision(trainer.accelerator)
            log.info("Precision %s: %s.", trainer.precision, reason)
        check_precision(trainer.precision)
        _distribute(trainer)
        checkpoint = self._get(self.config, "checkpoint")
        if checkpoint.save_top_k not in (0, 1) and checkpoint.filename == "best":
            checkpoint.filename = "best-{step}"  # under one name each would replace the last

        self._build_vocabulary()

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # in which jsonargparse has wrapped what a class of the config has raised
            refused = re.search(r"Problem with given class_path '(.+)':\n *(.+)", str(error))
            if not refused:
                raise
            raise InputError(f"{refused[1]} cannot be made: {refused[2]}") from error

    def _build_vocabulary(self) -> None:
        """In the place of the word "build": config.yaml and checkpoints then hold the tokens themselves."""
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        word = model.get("vocabulary")  # pre-training has none
        if isinstance(word, str) and word in BUILT_VOCABULARIES:
            texts = LibriSpeechDataModule(**{**data.as_dict(), "augmentation": None}).training_texts()
            vocabulary = Vocabulary.build(texts, mixed_case=BUILT_VOCABULARIES[word])
            log.info("Vocabulary: %d tokens, built from %d training transcripts.", len(vocabulary), len(texts))
            model.vocabulary = Namespace(asdict(vocabulary))

    def _instantiate_trainer(self, config: dict, callbacks: list) -> Trainer:
        own = [Diagnosis(), Throughput(), ExportBest(), AverageBest(), RunSummary(), PredictionWriter()]
        given = config.get("callbacks") or []
        has_bar = any(isinstance(each, ProgressBar) for each in (given if isinstance(given, list) else [given]))
        if config.get("enable_progress_bar") is not False and not has_bar:
            own.append(RunProgress())
        if self._get(self.config, "profile"):
            own.append(Profile())
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, BestCheckpoint)]
        else:
            callbacks = self._checkpointing(callbacks)
        try:
            trainer = super()._instantiate_trainer(config, own + callbacks + [Preemption()])
        except InputError:
            raise
        except ValueError as error:  # Lightning has no rule for which of the two it raises
            raise MisconfigurationException(str(error)) from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not a plugin that the config names
            trainer.strategy.checkpoint_io = BackgroundCheckpointIO()
        return trainer

    def _checkpointing(self, best: list) -> list:
        """All that writes checkpoints: with what keeps the best one, what keeps the newest, in one folder."""
        for callback in best:
            if isinstance(callback, BestCheckpoint):
                callback.dirpath = command.run_folder(self._options)
        resolved = self._parser(self.subcommand).dump(self._options, skip_none=False)
        return best + command.callbacks(self._options, resolved)


def one_line(message: str) -> str:
    """A message of jsonargparse, which likes to nest, on one line."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def _demo_config() -> Path:
    """configs/demo.yaml, which lies in the package where that was built as a wheel, and beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs" / "demo.yaml"
    return installed if installed.exists() else package.parent / "configs" / "demo.yaml"


def _distribute(trainer: Namespace) -> None:
    """As many devices as the launcher has started processes; over several, gradients travel by what suits the host."""
    if obstacle := obstacle_to_restarts():
        rank_zero_only(log.warning)(obstacle)
    per_host, num_hosts = devices_and_hosts()
    if trainer.devices == "auto" and per_host:
        trainer.devices = per_host
    if trainer.num_nodes == 1:
        trainer.num_nodes = num_hosts
    known = ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(trainer.strategy, str) and trainer.strategy.lower() not in known:
        advice = did_you_mean(trainer.strategy, known) or "; choose auto, ddp, smddp or fsdp2."
        raise InputError(f"trainer.strategy: there is no {trainer.strategy!r}{advice}")
    # "ddp" is also what Lightning makes of "auto" on several devices.
    backend = "nccl" if trainer.strategy == "ddp" else "auto"
    StrategyRegistry.register("ddp", SMDDPStrategy, override=True, backend=backend)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"trainer.default_root_dir: nothing can be written to {folder} ({error.strerror}); name another folder."
        ) from error


def _check_accelerator(accelerator: str) -> None:
    found = torch.cuda.is_available() or (accelerator == "gpu" and MPSAccelerator.is_available())
    if accelerator in ("gpu", "cuda") and not found:
        raise InputError(
            f"trainer.accelerator is {accelerator}, but torch {torch.__version__} sees no GPU: does nvidia-smi, and is"
            " this torch built for the CUDA of its driver? Without this option what is there is taken."
        )


def _quiet_libraries() -> None:
    """Our own log at INFO, from the first process; from the libraries only what a user can act on."""
    logging.basicConfig(format="%(message)s")
    is_first = (launched("global_rank") or getattr(rank_zero_only, "rank", 0)) == 0  # Lightning does not know mpirun's
    logging.getLogger("w2v_lightning").setLevel(logging.INFO if is_first else logging.WARNING)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    harmless = (
        ".*Checkpoint directory .* exists and is not empty.*",  # the run goes on
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*overridden `transfer_batch_to_device`.*",  # so that it does not wait
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # our scores are summed over the ranks before
    )
    for message in harmless:
        warnings.filterwarnings("ignore", message=message)
