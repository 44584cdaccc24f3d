"""fit, validate, test and predict: a LightningCLI around Wav2Vec2CTC and LibriSpeechDataModule."""

import difflib
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from w2v_lightning.callbacks.export import ExportBest
from w2v_lightning.callbacks.predictions import PredictionWriter
from w2v_lightning.callbacks.progress import RunProgress
from w2v_lightning.callbacks.summary import RunSummary
from w2v_lightning.callbacks.throughput import Throughput
from w2v_lightning.data.datamodule import LibriSpeechDataModule
from w2v_lightning.errors import InputError
from w2v_lightning.module import Wav2Vec2CTC

log = logging.getLogger(__name__)


def main(args: list[str]) -> None:
    """Run one LightningCLI sub-command with its options, such as ["fit", "--config", "cfg.yaml"]."""
    _quiet_libraries()
    if args == ["fit"]:
        args = ["fit", "--config", str(_demo_config())]
        print(f"No options given: the demo, {args[-1]}. Another run: fit --config YOUR.yaml")
    sys.argv[1:] = args  # LightningCLI warns where its `args` and sys.argv differ
    CLI(
        Wav2Vec2CTC,
        LibriSpeechDataModule,
        parser_class=Parser,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "default_root_dir": "runs",
            "num_sanity_val_steps": -1,  # all of it: WER before training, and nothing fails first after an epoch
            "log_every_n_steps": 10,
            "enable_model_summary": False,  # the module says how many parameters it has, in one line
        },
    )


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with an option and what would be right."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {one_line(message)}{self._nearest(message)}", file=sys.stderr)
        sys.exit(2)

    def _nearest(self, message: str) -> str:
        unknown = re.search(r"(?:[Uu]nrecognized arguments: --|[Kk]ey ['\"]|[Oo]ption ['\"])([\w.-]+)", message)
        if not unknown:
            return ""
        known = [action.dest for action in self._actions]
        for parser in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            known += [action.dest for action in parser._actions]
        return did_you_mean(unknown.group(1), known)


class CLI(LightningCLI):
    """What LightningCLI does, and: one seed for all, a precision that suits the device, our callbacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val_wer",
                "checkpoint.save_last": True,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )

    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        _check_writable(Path(trainer.default_root_dir))
        if trainer.precision is None:
            trainer.precision, reason = choose_precision(trainer.accelerator)
            log.info("Precision %s: %s.", trainer.precision, reason)

    def _instantiate_trainer(self, config: dict, callbacks: list) -> Trainer:
        own = [Throughput(), ExportBest(), RunSummary(), PredictionWriter()]
        if config.get("enable_progress_bar") is not False:
            own.append(RunProgress())
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        return super()._instantiate_trainer(config, own + callbacks)


def choose_precision(accelerator: str) -> tuple[str, str]:
    """The trainer's precision for the device at hand, and why."""
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true", "no CUDA device is used"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    # torch.cuda.is_bf16_supported() says yes on a T4 too, where bf16 is emulated and slow.
    if capability >= (8, 0):
        return "bf16-mixed", f"{name} (compute capability {capability[0]}.{capability[1]}) computes in bfloat16"
    return "16-mixed", f"{name} (compute capability {capability[0]}.{capability[1]}) has no bfloat16"


def one_line(message: str) -> str:
    """A message of jsonargparse, which likes to nest, on one line."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def did_you_mean(word: str, known: list[str]) -> str:
    """What to append to a message about `word`: the nearest known one, unless it is known itself."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f". Did you mean {nearest[0]}?" if nearest and word not in known else ""


def _demo_config() -> Path:
    """configs/demo.yaml, which lies in the package where that was built as a wheel, and beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs" / "demo.yaml"
    return installed if installed.exists() else package.parent / "configs" / "demo.yaml"


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"trainer.default_root_dir: nothing can be written to {folder} ({error.strerror}); name another folder."
        ) from error


def _quiet_libraries() -> None:
    """Our own log at INFO, from the first process; from the libraries only what a user can act on."""
    logging.basicConfig(format="%(message)s")
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    logging.getLogger("w2v_lightning").setLevel(logging.INFO if is_first else logging.WARNING)
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    harmless = (
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*It is recommended to use .self.log.*sync_dist=True.*",  # our scores are summed over the ranks before
    )
    for message in harmless:
        warnings.filterwarnings("ignore", message=message)
