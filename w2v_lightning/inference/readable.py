"""Loading of what can be read of a batch, so that one bad file costs the text of no other."""

from typing import NamedTuple

import numpy as np

from w2v_lightning.data.audio_ref import AudioRef
from w2v_lightning.data.batch import Batch
from w2v_lightning.data.durations import DurationError
from w2v_lightning.data.loader import UtteranceDataset
from w2v_lightning.data.samplers import Slot
from w2v_lightning.errors import InputError


class LoadedSlot(NamedTuple):
    """The readable utterances of a slot in batches, and the errors of the others."""

    batches: list[tuple[np.ndarray, Batch]]  # with the positions of their utterances
    errors: dict[int, InputError]  # by position
    remarks: list[str]  # on utterances that are read regardless


class ReadableDataset(UtteranceDataset):
    """Dataset that leaves unreadable utterances out of a batch, instead of failing as a whole.

    Utterances of another duration than the manifest says are batches of their own, since the plan does not hold for
    them.
    """

    _checks_durations = True

    def __getitem__(self, slot: Slot) -> LoadedSlot:  # type: ignore[override]  # the loader passes on any item
        try:
            return LoadedSlot([(slot.positions, super().__getitem__(slot))], {}, [])
        except InputError:  # read the utterances one by one to find those at fault
            errors = {i: error for i in slot.positions.tolist() if (error := self._error(i))}
        misplanned = [i for i, error in errors.items() if isinstance(error, DurationError)]
        remarks = [str(errors.pop(i)) for i in misplanned]
        readable = [i for i in slot.positions.tolist() if i not in {*errors, *misplanned}]
        self._checks_durations = False
        try:
            batches = [self._batch(group) for group in (readable, *([i] for i in misplanned)) if group]
        finally:
            self._checks_durations = True
        return LoadedSlot(batches, errors, remarks)

    def _batch(self, positions: list[int]) -> tuple[np.ndarray, Batch]:
        return np.array(positions), super().__getitem__(Slot(np.array(positions)))

    def _check_duration(self, ref: AudioRef, actual_s: float) -> None:
        if self._checks_durations:
            super()._check_duration(ref, actual_s)

    def _error(self, position: int) -> InputError | None:
        try:
            super().__getitem__(Slot(np.array([position])))
        except InputError as error:
            return error
        return None
