"""What the user sees while images are read and while the model trains: live bars on a terminal, else
lines."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .._extras import require
from ..data import Progress
from ..training import Callback, Trainer

_REFRESH = 0.1


def is_terminal() -> bool:
    """Whether live bars make sense. rich alone believes FORCE_COLOR, which says nothing about pipes."""
    return sys.stdout.isatty() and require("rich.console").Console().is_terminal


@contextmanager
def reading_progress(quiet: bool) -> Iterator[Progress | None]:
    """A bar over the files being read, on terminals, from the first file on; it goes away when done."""
    if quiet or not is_terminal():
        yield None
        return
    rich = require("rich.progress")
    columns = (
        rich.TextColumn("reading images"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    bar = rich.Progress(*columns, transient=True)
    task = bar.add_task("")

    def update(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        bar.stop()


class TrainingProgress(Callback):
    """One line per epoch with losses, accuracies, images/s and the time left; on a terminal also a live bar
    below them."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._bar = None
        self._task = None
        self._drawn = 0.0
        self._rate = Rate()

    def on_train_begin(self, trainer: Trainer) -> None:
        self._rate.start(trainer)
        if not self.quiet and is_terminal():
            self._bar = _make_bar()
            self._task = self._bar.add_task("", **self._fields(trainer))
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer) -> None:
        self._rate.count(trainer)
        now = time.monotonic()
        # Reading the metrics waits for the device: ten times a second is enough for the eye.
        if self._bar is not None and now - self._drawn >= _REFRESH:
            self._drawn = now
            self._bar.update(self._task, **self._fields(trainer))

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        if self.quiet:
            return
        width = len(str(trainer.epochs))
        parts = [
            f"epoch {epoch + 1:>{width}}/{trainer.epochs}",
            f"loss {logs['loss']:.4f}",
            f"accuracy {logs['accuracy']:7.2%}",
        ]
        if "val_loss" in logs:
            parts += [f"val_loss {logs['val_loss']:.4f}", f"val_accuracy {logs['val_accuracy']:7.2%}"]
        parts += [f"{self._rate.of_epoch():,.0f} images/s", f"ETA {clock(self._rate.time_left(trainer))}"]
        line = "  ".join(parts)
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        self._rate.start_epoch(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if self._bar is not None:
            # The bar has said its piece when all epochs are done; an interrupted one stays to be seen.
            self._bar.update(self._task, visible=trainer.epoch < trainer.epochs)
            self._bar.stop()

    def _fields(self, trainer: Trainer) -> dict:
        steps = trainer.steps_per_epoch or 0
        fields = {
            "total": steps * trainer.epochs or None,
            "completed": trainer.epoch * steps + trainer.step,
            "epoch": f"{min(trainer.epoch + 1, trainer.epochs)}/{trainer.epochs}",
            "eta": clock(self._rate.time_left(trainer)),
            "rate": f"{self._rate.now():,.0f} images/s",
            "metrics": "",
        }
        if trainer.step:
            loss, accuracy = trainer.running_metrics()
            fields["metrics"] = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
        return fields


class Rate:
    """How fast training goes, validation and saving left out of images/s but not of the time left."""

    def start(self, trainer: Trainer) -> None:
        """Begin to count, where training begins or is resumed."""
        self._began = time.monotonic()
        self._first_step = trainer.epoch * (trainer.steps_per_epoch or 0) + trainer.step
        self._smoothed = 0.0
        self.start_epoch(trainer)

    def start_epoch(self, trainer: Trainer) -> None:
        """Begin an epoch's count."""
        self._epoch_began = self._last = time.monotonic()
        self._epoch_images = self._last_images = trainer.images_seen
        self._epoch_rate = 0.0

    def count(self, trainer: Trainer) -> None:
        """Count one step."""
        now = time.monotonic()
        images = trainer.images_seen
        self._epoch_rate = (images - self._epoch_images) / max(now - self._epoch_began, 1e-9)
        if now - self._last >= _REFRESH:
            current = (images - self._last_images) / (now - self._last)
            self._smoothed = current if not self._smoothed else 0.7 * self._smoothed + 0.3 * current
            self._last, self._last_images = now, images

    def now(self) -> float:
        """Images per second lately."""
        return self._smoothed or self._epoch_rate

    def of_epoch(self) -> float:
        """Images per second over the training steps of this epoch."""
        return self._epoch_rate

    def time_left(self, trainer: Trainer) -> float | None:
        """Seconds to the end of training, None while nothing is known."""
        if not trainer.steps_per_epoch:
            return None
        step = trainer.epoch * trainer.steps_per_epoch + trainer.step
        done = step - self._first_step
        if not done:
            return None
        left = trainer.steps_per_epoch * trainer.epochs - step
        return left * (time.monotonic() - self._began) / done


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _make_bar():
    rich = require("rich.progress")
    return rich.Progress(
        rich.TextColumn("epoch {task.fields[epoch]}"),
        rich.BarColumn(bar_width=24),
        rich.TextColumn("{task.fields[metrics]}"),
        rich.TextColumn("[cyan]{task.fields[rate]}"),
        rich.TextColumn("ETA {task.fields[eta]}"),
    )


def say(text: str, quiet: bool = False) -> None:
    """A line for the user, at once."""
    if not quiet:
        print(text, file=sys.stdout, flush=True)
