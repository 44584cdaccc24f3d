"""Agreement between the Trainer, the module and the data: micro-batches per step, devices, and the model's input."""

from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

from w2v_lightning.data.batch import InputSpec
from w2v_lightning.data.loader import TrainLoader, UtteranceDataset
from w2v_lightning.data.samplers import TrainSampler
from w2v_lightning.errors import InputError

REMEDY = "Pass the data module itself, such as trainer.fit(module, datamodule=data): it is then set up for both."

# Values of accumulate_grad_batches that a data module has set, and not the user.
_set_by_data: WeakKeyDictionary[Trainer, int] = WeakKeyDictionary()


def set_accumulation(trainer: Trainer, sampler: TrainSampler, device_seconds: float) -> None:
    """Let the trainer accumulate the micro-batches of a step.

    Raises:
        InputError: the user has set another number.
    """
    given, needed = trainer.accumulate_grad_batches, sampler.num_micro_batches
    if given not in (1, needed, _set_by_data.get(trainer)):
        raise InputError(
            f"trainer.accumulate_grad_batches is {given}, but data.batch_seconds={sampler.batch_seconds:g} over"
            f" {sampler.world_size} device(s) with data.device_seconds={device_seconds:g} makes it {needed}."
            " Leave it out: it follows from these two."
        )
    if given != needed:
        trainer.accumulate_grad_batches = _set_by_data[trainer] = needed


def check_training_loader(trainer: Trainer, loader: Any) -> None:
    """Check that a loader from `LibriSpeechDataModule.train_dataloader` was set up for this trainer.

    Without the trainer, a data module assumes one device, and cannot set accumulate_grad_batches: each micro-batch
    would be a step, with a loss scaled for a whole one.

    Raises:
        InputError: it was set up for another number of devices or of micro-batches.
    """
    if not isinstance(loader, TrainLoader):
        return
    sampler = loader.sampler.epochs
    if sampler.world_size != trainer.world_size:
        raise InputError(
            f"The training data is split over {sampler.world_size} device(s), but the trainer has {trainer.world_size}."
            f" {REMEDY}"
        )
    if sampler.num_micro_batches != trainer.accumulate_grad_batches:
        raise InputError(
            f"Each step of the training data has {sampler.num_micro_batches} micro-batches, but accumulate_grad_batches"
            f" of the trainer is {trainer.accumulate_grad_batches}. {REMEDY}"
        )


def check_input(loaders: Any, spec: InputSpec) -> None:
    """Check that the data of one or several loaders of LibriSpeechDataModule was made for the model with this `spec`.

    Raises:
        InputError: it was made for another one: labels, frame lengths or masks would be wrong.
    """
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        dataset = getattr(loader, "dataset", None)
        if isinstance(dataset, UtteranceDataset) and dataset.spec != spec:
            names = [name for name in vars(spec) if getattr(spec, name) != getattr(dataset.spec, name)]
            raise InputError(f"The data was set up for a model with another {', '.join(names)}. {REMEDY}")
