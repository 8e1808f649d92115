"""Parsing and dispatch. Nothing heavy is imported before the sub-command is known."""

import io
import os
import signal
import sys
from collections.abc import Sequence

from .errors import UserError
from .parser import make_parser

INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: that of the process) and return its exit status: 0 for success, 1
    for a target that was missed or nothing predicted, 2 for what the user can mend, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of folders and files need not be text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; the flush at exit must not fail on it too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str]) -> int:
    if argv[:1] == ["info"]:
        from ..info import main as info

        return info(argv[1:])
    arguments = make_parser().parse_args(argv)
    from .._extras import MissingExtraError
    from ..data import DataError
    from ..models import ModelError
    from ..training import RunError

    try:
        return _dispatch(arguments)
    except (UserError, DataError, ModelError, RunError, MissingExtraError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _dispatch(arguments) -> int:
    import torch

    if arguments.command == "bench":
        from . import bench

        return bench.main(arguments)
    from . import evaluate, predict, train

    commands = {"train": train.main, "eval": evaluate.main, "predict": predict.main}
    try:
        return commands[arguments.command](arguments)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the device ran out of memory: lower --batch-size, --image-size or --memory-mb"
        ) from error


def _fail(message: str) -> int:
    print(f"fastcnn: {message}", file=sys.stderr)
    return 2
