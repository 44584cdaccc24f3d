"""The commands fit, validate, test and predict: LightningCLI with the module of a `task` and LibriSpeechDataModule."""

import argparse
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

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

import w2v_lightning.strategies.fsdp2  # noqa: F401  (registers trainer.strategy=fsdp2)
from w2v_lightning.callbacks.averaging import AverageBest
from w2v_lightning.callbacks.diagnosis import Diagnosis
from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.callbacks.predictions import PredictionWriter
from w2v_lightning.callbacks.preemption import Preempted, Preemption, preemptible
from w2v_lightning.callbacks.progress import RunProgress
from w2v_lightning.callbacks.summary import RunSummary
from w2v_lightning.checkpoints import options as checkpoint_options
from w2v_lightning.checkpoints.best import BestCheckpoint
from w2v_lightning.checkpoints.changes import RunOptions, by_name
from w2v_lightning.checkpoints.recent import drain
from w2v_lightning.checkpoints.restoring import naming
from w2v_lightning.checkpoints.writer import BackgroundCheckpointIO
from w2v_lightning.command_line import PROGRAM, PlainErrors, dashed, one_line
from w2v_lightning.compat.lightning import guard_restoring
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.errors import InputError, did_you_mean
from w2v_lightning.module import Wav2Vec2CTC
from w2v_lightning.pretraining import Wav2Vec2Pretraining
from w2v_lightning.reporting.units import printable
from w2v_lightning.runtime.messages import MessageHandler
from w2v_lightning.runtime.precision import check_precision, choose_precision
from w2v_lightning.strategies.group import leave_group
from w2v_lightning.strategies.launcher import launched, obstacle_to_restarts
from w2v_lightning.strategies.sagemaker_environment import devices_and_hosts
from w2v_lightning.strategies.smddp import SMDDPStrategy
from w2v_lightning.telemetry.profile import Profile
from w2v_lightning.telemetry.throughput import Throughput
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import BUILT_VOCABULARIES, SPECIAL_TOKENS, Vocabulary
from w2v_lightning.training import out_of_memory
from w2v_lightning.training.base_module import PlannedModule
from w2v_lightning.training.monitors import check_monitors
from w2v_lightning.training.run_folder import output_folder

log = logging.getLogger(__name__)

# For each task its module, and the metric that the best model is chosen by.
TASKS = {"ctc": (Wav2Vec2CTC, "val_wer"), "pretraining": (Wav2Vec2Pretraining, "val_loss")}

MAX_LETTERS = 100  # of a built vocabulary, in the log

TRAINER_DEFAULTS = {
    "default_root_dir": "runs",
    # Validate fully before training: it shows the WER to start from, and fails now rather than after an epoch.
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 10,
    "enable_model_summary": False,  # the module logs its number of parameters in one line
}


def main(args: Sequence[str]) -> int:
    """Run a command of LightningCLI with its options, such as ["fit", "--config", "cfg.yaml"]; returns 0.

    Raises:
        InputError: an option or a file is wrong; names it.
        Preempted: after SIGTERM, once a checkpoint is complete.
    """
    _quiet_libraries()
    args = dashed(args)
    if args == ["fit"]:
        args = ["fit", "--config", str(_demo_config())]
        print(f"No options given: running the demo, {args[-1]}. For a run of your own: fit --config YOUR.yaml")
    sys.argv[1:] = args  # LightningCLI warns if its `args` differ from sys.argv
    try:
        _build(CLI, task_of(args))
    except Preempted:
        leave_group()  # every rank raises Preempted, so all can leave the process group together
        raise
    except MisconfigurationException as error:  # Lightning's exception for invalid options
        raise InputError(f"Lightning refuses these options: {one_line(str(error))}") from error
    leave_group()
    return 0


def _build(cli_class: type["CLI"], task: str) -> "CLI":
    return cli_class(
        TASKS[task][0],
        LibriSpeechDataModule,
        parser_class=Parser,
        parser_kwargs={"prog": PROGRAM},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults=TRAINER_DEFAULTS,
    )


def parser(command: str = "fit", task: str = "ctc") -> LightningArgumentParser:
    """Return the parser of a command, without parsing anything."""
    return unparsed(task).command_parser(command)


def resolve(args: Sequence[str]) -> dict[str, Any]:
    """Return all options of a command, defaults included, as `--print_config` prints them; nothing is run.

    Args:
        args: the command and its options, such as ["fit", "--config", "cfg.yaml"].

    Raises:
        InputError: an option or a file is wrong; names it.
    """
    args = dashed(args)
    cli = unparsed(task_of(args))
    options = cli.parser.parse_args(args)
    return yaml.safe_load(cli.command_parser(args[0]).dump(options[args[0]], skip_none=False))


def unparsed(task: str) -> "CLI":
    """Return the LightningCLI of a task with its parsers built, before it parses or runs anything."""
    try:
        return _build(_UnparsedCLI, task)
    except _BuiltError as built:
        return built.cli


def task_of(args: list[str]) -> str:
    """Return the task that options or their config files name last; `ctc` if they name none.

    The parser depends on it: the options of `model` are those of the task's module.

    Raises:
        InputError: the task is unknown, or does not have the command.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("-c", "--config", dest="tasks", action="append", nargs="?", type=_task_in_config)
    peek.add_argument("--task", dest="tasks", action="append", nargs="?")
    named = [task for task in peek.parse_known_args(args)[0].tasks or [] if task is not None]
    task = named[-1] if named else "ctc"
    if task not in tuple(TASKS):  # the value may be any YAML (a list is unhashable): compare, do not look up
        raise InputError(f"task: unknown task {task!r}; choose from {', '.join(TASKS)}.")
    if task == "pretraining" and args[0] == "predict":
        raise InputError("task: a pre-trained model predicts no words; fine-tune it first (task: ctc).")
    return task


def _task_in_config(path: str) -> object:
    """Return the `task` of a config file, None if it cannot be read: the parser reports that later."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return config.get("task") if isinstance(config, dict) else None


class Parser(PlainErrors, LightningArgumentParser):
    """Parser of LightningCLI with errors of one line."""


class SaveConfig(SaveConfigCallback):
    """Callback that writes config.yaml, defaults included, to the run's folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = output_folder(trainer)  # a collective operation: every rank has to call it
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, self._folder / self.config_filename, skip_none=False, overwrite=True)


class CLI(LightningCLI):
    """LightningCLI with one seed for all parts, a precision that suits the device, and this package's callbacks."""

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Build the parsers; their usage lines say what a user types."""
        super().setup_parser(*args, **kwargs)
        for command in self.subcommands():
            self.command_parser(command).prog = f"{PROGRAM} {command}"

    def command_parser(self, command: str) -> LightningArgumentParser:
        """Return the parser of fit, validate, test or predict."""
        return self._subcommand_parsers[command]

    def _parse_ckpt_path(self) -> None:
        """Take the model's options from the checkpoint to score; `fit` keeps its own, and reports what has changed.

        Lightning reads the file without a check of its content, and overwrites the options of `fit`, too.
        """
        command = str(self.config.get("subcommand"))
        path = self.config.get(f"{command}.ckpt_path")
        if command != "fit" and path and (hyper_parameters := checkpoint_options.hyper_parameters(str(path))):
            self.config = self.parser.parse_object({command: {"model": hyper_parameters}}, self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for part in ("data", "model"):
            parser.link_arguments("seed_everything", f"{part}.seed", compute_fn=int)
        if self.model_class is Wav2Vec2CTC:
            parser.link_arguments("data.text", "model.text")  # the model is exported with the rules of its texts
        task, monitor = next((name, best_by) for name, (kind, best_by) in TASKS.items() if kind is self.model_class)
        parser.add_argument(
            "--task",
            type=Literal[tuple(TASKS)],
            default=task,
            help="kind of training: ctc fine-tunes on transcripts, pretraining learns from audio alone",
        )
        profile = "profile of a few training steps: print where their time goes (fit only)"
        parser.add_argument("--profile", type=bool, nargs="?", const=True, default=False, help=profile)
        checkpoint_options.add_options(parser)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": monitor,
                "checkpoint.save_last": False,  # RecentCheckpoints keeps the newest checkpoints
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def fit(self, model: PlannedModule, datamodule: LibriSpeechDataModule, **options: Any) -> None:
        """Run the command `fit`: resume, train with recovery from too little memory, write what is pending."""
        check_monitors(self.trainer, model, datamodule.val_splits)
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning, outside of its class
            run = self._run_options(model)
            is_left, options["ckpt_path"] = checkpoint_options.begin(self.trainer, model, self._options, run)
            if not is_left:
                return
        with preemptible(self.trainer):
            out_of_memory.fit(self.trainer, model, datamodule, **options)
        drain(self.trainer)

    def before_validate(self) -> None:
        """Refuse a model without a trained head: random weights have a WER too, that of a bad model."""
        if isinstance(self.model, Wav2Vec2CTC) and self._options.ckpt_path is None:
            self.model.check_head()

    before_test = before_predict = before_validate

    @property
    def _options(self) -> Namespace:
        """Options of the command, defaults included."""
        return self.config.get(str(self.subcommand), self.config)

    @property
    def _resolved(self) -> str:
        """Options of the command as YAML, defaults included."""
        return self._parser(self.subcommand).dump(self._options, skip_none=False)

    def _run_options(self, model: PlannedModule) -> RunOptions:
        parser = self.command_parser("fit")
        defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_none=False, skip_validation=True))
        return RunOptions(by_name(yaml.safe_load(self._resolved), model.hparams), by_name(defaults, defaults["model"]))

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        _check_writable(Path(trainer.default_root_dir))
        _check_accelerator(trainer.accelerator)
        checkpoint_options.check_ckpt_path(str(self.subcommand), self._options)
        if trainer.precision is None:
            trainer.precision, reason = choose_precision(trainer.accelerator)
            log.info("Precision %s: %s.", trainer.precision, reason)
        check_precision(trainer.precision)
        _distribute(trainer)
        checkpoint = self._get(self.config, "checkpoint")
        if checkpoint.save_top_k not in (0, 1) and checkpoint.filename == "best":
            checkpoint.filename = "best-{step}"  # under one name, each checkpoint would replace the one before

        self._build_vocabulary()

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps exceptions of the classes that a config names
            refused = re.search(r"Problem with given class_path '(.+)':\n *(.+)", str(error))
            if not refused:
                raise
            raise InputError(f"{refused[1]} cannot be created: {refused[2]}") from error

    def _build_vocabulary(self) -> None:
        """Replace the word "build" by a vocabulary, so that config.yaml and checkpoints hold the tokens themselves."""
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        word = model.get("vocabulary")  # None in pre-training
        if isinstance(word, str) and word in BUILT_VOCABULARIES:
            texts = LibriSpeechDataModule(**{**data.as_dict(), "augmentation": None, "text": None}).training_texts()
            given = data.get("text")  # jsonargparse keeps it as a class and its arguments
            rules = TextRules(**given.get("init_args", given).as_dict()) if given else None
            vocabulary = Vocabulary.build(texts, mixed_case=BUILT_VOCABULARIES[word], rules=rules)
            log.info(
                "Vocabulary: %d tokens, built from %d training transcripts: %s.",
                *(len(vocabulary), len(texts), _first(vocabulary.tokens[len(SPECIAL_TOKENS) :])),
            )
            model.vocabulary = Namespace(asdict(vocabulary))
            if given and vocabulary.rules:  # with the language that was recognised
                data.text = model.text = Namespace(asdict(vocabulary.rules))

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
        except ValueError as error:  # Lightning raises either, without a rule
            raise MisconfigurationException(str(error)) from error
        if (
            type(trainer.strategy.checkpoint_io) is TorchCheckpointIO
        ):  # the default: the config names no plugin of its own
            trainer.strategy.checkpoint_io = BackgroundCheckpointIO()
        guard_restoring(trainer, naming)
        return trainer

    def _checkpointing(self, best: list) -> list:
        """Return all callbacks that write checkpoints, the best and the newest, in one folder."""
        for callback in best:
            if isinstance(callback, BestCheckpoint):
                callback.dirpath = checkpoint_options.run_folder(self._options)
        return best + checkpoint_options.callbacks(self._options, self._resolved)


class _BuiltError(Exception):
    """Ends the construction of a LightningCLI before it parses."""

    def __init__(self, cli: CLI) -> None:
        super().__init__()
        self.cli = cli


class _UnparsedCLI(CLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _BuiltError(self)


def _first(letters: Sequence[str]) -> str:
    more = f" and {len(letters) - MAX_LETTERS} more" if len(letters) > MAX_LETTERS else ""
    return printable(" ".join(letters[:MAX_LETTERS])) + more


def _demo_config() -> Path:
    """Return the path of demo.yaml: in the package if it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs" / "demo.yaml"
    return installed if installed.exists() else package.parent / "configs" / "demo.yaml"


def _distribute(trainer: Namespace) -> None:
    """Set devices and hosts to what the launcher has started, and choose the backend that suits them."""
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
        raise InputError(f"trainer.strategy: unknown strategy {trainer.strategy!r}{advice}")
    # Lightning turns "auto" into "ddp" on several devices, so "ddp" is registered again for both.
    backend = "nccl" if trainer.strategy == "ddp" else "auto"
    StrategyRegistry.register("ddp", SMDDPStrategy, override=True, backend=backend)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"trainer.default_root_dir: cannot write to {folder} ({error.strerror}); name another folder."
        ) from error


def _check_accelerator(accelerator: str) -> None:
    has_gpu = torch.cuda.is_available() or (accelerator == "gpu" and MPSAccelerator.is_available())
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise InputError(
            f"trainer.accelerator is {accelerator}, but torch {torch.__version__} sees no GPU: check that nvidia-smi"
            " shows one, and that this torch is built for the CUDA of its driver; or omit this option to use the CPU."
        )


def _quiet_libraries() -> None:
    """Log our own messages at INFO on the first process, and of the libraries' only what a user can act on."""
    logging.basicConfig(format="%(message)s", handlers=[MessageHandler()])
    is_first = (
        launched("global_rank") or getattr(rank_zero_only, "rank", 0)
    ) == 0  # Lightning does not read mpirun's variables
    logging.getLogger("w2v_lightning").setLevel(logging.INFO if is_first else logging.WARNING)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    harmless = (
        ".*Checkpoint directory .* exists and is not empty.*",  # normal when a run resumes
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*overridden `transfer_batch_to_device`.*",  # ours copies without waiting
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # our scores are already summed over the ranks
    )
    for message in harmless:
        warnings.filterwarnings("ignore", message=message)
