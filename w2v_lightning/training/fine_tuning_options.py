"""Options of fine-tuning: hyper-parameters, vocabulary and text rules, and the model that they name.

Checkpoints hold options as plain values, so a vocabulary or rules may come as a mapping.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import Wav2Vec2ForCTC

from w2v_lightning.errors import InputError
from w2v_lightning.model import wav2vec2
from w2v_lightning.model.lora import Lora
from w2v_lightning.model.stored import WaveformFormat
from w2v_lightning.optim import Decay, tri_stage
from w2v_lightning.text.rules import TextRules
from w2v_lightning.text.vocabulary import BUILT_VOCABULARIES, Vocabulary
from w2v_lightning.training.options import TrainingOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuningOptions(TrainingOptions):
    """Options of Wav2Vec2CTC, which documents them."""

    lora: Lora | Mapping[str, Any] | None
    hold: float
    final_lr_scale: float
    decay: Decay
    layer_lr_decay: float
    freeze_updates: int
    loss_average: Literal["utterance", "label"]
    final_dropout: float
    hf_compat: bool
    target_lang: str | None

    def schedule(self, num_updates: int) -> Callable[[int], float]:
        """Return the learning rate factor of each update; see `tri_stage`."""
        return tri_stage(num_updates, self.warmup, self.hold, self.final_lr_scale, self.decay)

    def _named_changes(self) -> dict[str, Any]:
        return {**super()._named_changes(), "final_dropout": self.final_dropout}


def vocabulary_of(given: Vocabulary | Mapping[str, Any] | str | None) -> Vocabulary | None:
    """Return the vocabulary that the option names; None: the model's own. Checkpoints hold a mapping."""
    if isinstance(given, Mapping):
        rules = given.get("rules")  # absent in checkpoints of earlier versions
        return Vocabulary(**{**given, "tokens": tuple(given["tokens"]), "rules": rules and rules_of(rules)})
    if not isinstance(given, str):
        return given
    if given in BUILT_VOCABULARIES:
        raise InputError(
            f"model.vocabulary={given} works only on the command line, which has the training transcripts; in a script"
            " pass w2v_lightning.text.vocabulary.Vocabulary.build(texts)."
        )
    return Vocabulary.load(given)


def rules_of(given: TextRules | Mapping[str, Any]) -> TextRules:
    """Return the rules; checkpoints hold a mapping."""
    return TextRules(**given) if isinstance(given, Mapping) else given


def with_rules(vocabulary: Vocabulary, text: TextRules | Mapping[str, Any] | None) -> Vocabulary:
    """Return the vocabulary with the rules that are given, and log where they contradict its own."""
    if text is not None:
        rules = rules_of(text)
        if vocabulary.rules and (differences := rules.differences(vocabulary.rules)):
            log.warning(
                "data.text contradicts the rules that the model was trained with: %s. Scores cannot be compared with"
                " earlier ones; leave data.text out to keep the model's own rules.",
                differences,
            )
        vocabulary = vocabulary.with_rules(rules)
    if vocabulary.remark:
        log.info(vocabulary.remark)
    return vocabulary


def build(
    pretrained: str | None, config: Mapping[str, Any], vocabulary: Vocabulary | None, target_lang: str | None
) -> tuple[Wav2Vec2ForCTC, Vocabulary, WaveformFormat]:
    """Return the model that the options name, its vocabulary and its input."""
    if pretrained is not None:
        return wav2vec2.from_pretrained(pretrained, config, vocabulary, target_lang)
    if target_lang:
        raise InputError("model.target_lang needs a model with language adapters in model.pretrained, found null.")
    vocabulary = vocabulary or Vocabulary()
    return wav2vec2.from_scratch(config, vocabulary), vocabulary, WaveformFormat()
