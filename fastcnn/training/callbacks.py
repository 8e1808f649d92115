"""Hooks into a training run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer import Trainer


class Callback:
    """Override what is of interest. `trainer.epoch` and `trainer.step` say where training stands,
    `trainer.running_metrics()` what it has come to in this epoch (which waits for the device), and
    `trainer.stop()` ends it after the current step."""

    def on_train_begin(self, trainer: "Trainer") -> None:
        """Before the first step."""

    def on_train_batch_end(self, trainer: "Trainer") -> None:
        """After every optimiser step. Nothing here should wait for the device at every step."""

    def on_epoch_end(self, trainer: "Trainer", epoch: int, logs: dict[str, float]) -> None:
        """After every epoch (from 0) and its validation, when the history has it."""

    def on_train_end(self, trainer: "Trainer") -> None:
        """After the last step, also when training was stopped or failed."""
