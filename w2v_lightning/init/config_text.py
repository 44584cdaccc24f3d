"""Text of a config, with the reason of each value beside it."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from w2v_lightning.check.alphabet import Alphabet
from w2v_lightning.init.corpus import PreparedCorpus
from w2v_lightning.model import stored
from w2v_lightning.reporting.units import printable
from w2v_lightning.text.vocabulary import Vocabulary

STEP_S = 1600.0  # of fairseq's recipes for the base model
MIN_STEPS_PER_EPOCH = 2
UPDATES_BETWEEN_SCORES = 1000
LONG_S = 30.0  # memory grows with the square of the duration


@dataclass(frozen=True)
class Recipe:
    """Values of one of fairseq's recipes (examples/wav2vec/config/finetuning).

    Args:
        name: its name in configs/.
        most_hours: corpora of more hours take the next one.
        updates: number of optimiser updates.
        model: options that are not the module's defaults.
    """

    name: str
    most_hours: float
    updates: int
    model: dict[str, float]


RECIPES = (
    Recipe("base_1h", 3, 13_000, {"learning_rate": 5e-5, "freeze_updates": 10_000, "mask_channel_prob": 0.25}),
    Recipe("base_10h", 30, 20_000, {"learning_rate": 5e-5, "freeze_updates": 10_000, "layerdrop": 0.05}),
    Recipe("librispeech_100h", 300, 80_000, {}),
    Recipe("base_960h", math.inf, 320_000, {"learning_rate": 1e-4}),
)


def config_text(corpus: PreparedCorpus, model: str, path: Path) -> str:
    """Return a config of `fit` as YAML.

    Args:
        corpus: the data.
        model: folder or name of the model to fine-tune.
        path: where the config will be, for its first lines.
    """
    recipe = next(each for each in RECIPES if corpus.hours <= each.most_hours)
    step_s = min(STEP_S, max(corpus.hours * 3600 / MIN_STEPS_PER_EPOCH, corpus.longest_s))
    step_s = math.ceil(step_s)
    steps_per_epoch = max(1.0, corpus.hours * 3600 / step_s)
    lines = [
        f"# Fine-tuning of {model} on {corpus}.",
        "#",
        f"#   python -m w2v_lightning fit --config {path}",
        "#",
        f"# The values of the model and the number of updates are those of fairseq's recipe {recipe.name}.",
        *_device_lines(),
        "model:",
        f"  pretrained: {_scalar(model)}",
        *_vocabulary_lines(corpus, model),
        *(f"  {name}: {_number(value)}" for name, value in recipe.model.items()),
        "data:",
        f"  root: {_scalar(str(corpus.folder))}",
        *_text_lines(corpus),
        f"  train_splits: {_scalar([*corpus.train])}",
        f"  val_splits: {_scalar([*corpus.validation])}",
        f"  test_splits: {_scalar([*corpus.test])}",
        f"  batch_seconds: {step_s} # audio of one update, over all devices",
        f"  device_seconds: auto # what the device holds; the longest utterance lasts {corpus.longest_s:.1f} s",
        *_long_lines(corpus),
        "trainer:",
        f"  default_root_dir: {_scalar(f'runs/{corpus.folder.name}')} # the same command resumes from here",
        f"  max_steps: {recipe.updates}",
        "  max_epochs: -1",
        f"  check_val_every_n_epoch: {max(1, round(UPDATES_BETWEEN_SCORES / steps_per_epoch))} # about"
        f" {UPDATES_BETWEEN_SCORES:,} updates",
    ]
    return "\n".join(lines) + "\n"


def _device_lines() -> list[str]:
    if torch.cuda.is_available():
        return []
    return [
        "# This machine has no GPU that torch can use. On a CPU, try a shorter run first, such as",
        "# --trainer.max_steps 200 --data.batch_seconds 100 --model.freeze_updates 0.",
    ]


def _vocabulary_lines(corpus: PreparedCorpus, model: str) -> list[str]:
    """Return the option for a vocabulary of the corpus, if the model's own lacks some of its characters."""
    own = _own_vocabulary(model)
    texts = set(map(own.normalise, corpus.training.texts))
    missing = sorted(set().union(*map(own.unknown_characters, texts)))
    if not missing:
        return []
    return [f"  vocabulary: build # the vocabulary of the model lacks {printable(' '.join(missing[:20]))}"]


def _own_vocabulary(model: str) -> Vocabulary:
    """Return the vocabulary of a local model; for a name on the Hub, that of facebook's models."""
    return (stored.vocabulary_of(model) if Path(model).is_dir() else None) or Vocabulary()


def _text_lines(corpus: PreparedCorpus) -> list[str]:
    language = Alphabet(corpus.training.texts).language
    return [f"  text: {{language: {language}}} # the transcripts have its dotless i"] if language else []


def _long_lines(corpus: PreparedCorpus) -> list[str]:
    if corpus.longest_s <= LONG_S:
        return []
    number = int((corpus.training.durations_s_N > LONG_S).sum())
    return [f"  # max_seconds: {LONG_S:g} # would leave out {number:,} longer utterances, which need much memory"]


def _number(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 else f"{value:g}"  # YAML takes 5e-05 for a text


def _scalar(value: str | list[str]) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("...\n").strip()
