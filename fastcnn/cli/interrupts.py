"""Ctrl-C and SIGTERM end training after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..training import Trainer


class Interrupt:
    """Which signal came, if one did."""

    number: int | None = None

    @property
    def exit_status(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + (self.number or 0)


@contextmanager
def stops(trainer: Trainer) -> Iterator[Interrupt]:
    """While this lasts, the first SIGINT or SIGTERM stops `trainer` after its step; a second SIGINT ends the
    program as usual. Outside the main thread, which alone gets signals, nothing changes."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def handle(number: int, _frame) -> None:
        interrupt.number = number
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
