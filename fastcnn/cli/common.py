"""What several sub-commands do alike."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..data import Batches, ImageSet, Skipped
from ..models import build
from ..training import Run, RunConfig
from .errors import UserError

NAMED_AT_MOST = 20
EVALUATION_BATCH = 256


def find_device(name: str | None) -> torch.device:
    """The device that the user named, or a GPU where there is one. Raises `UserError` for one that isn't."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device: expected cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: torch sees no GPU here; leave the flag out to train on the CPU"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    elif device.type != "cpu":
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:N")
    return device


def build_model(config: RunConfig) -> nn.Module:
    """The untrained model of a run."""
    data = config.data
    return build(
        config.model, num_classes=len(data.classes), in_channels=data.channels, image_size=data.image_size
    )


def trained_model(run: Run, which: str, device: torch.device) -> nn.Module:
    """The model of a run with its best or last weights, on `device`."""
    model = build_model(run.config)
    run.load_weights(which, model)
    return model.to(device)


def evaluation_batches(
    images: ImageSet, config: RunConfig, device: torch.device, batch_size: int = EVALUATION_BATCH
) -> Batches:
    """`images` in order, normalised as the run's training images."""
    data = config.data
    return Batches(
        images.images, images.labels, batch_size, shuffle=False, mean=data.mean, std=data.std, device=device
    )


def report_skipped(skipped: Sequence[Skipped], base: Path | None = None) -> None:
    """Count and name the unreadable files on stderr."""
    if not skipped:
        return
    print(f"skipped {count(len(skipped), 'unreadable file')}:", file=sys.stderr)
    for item in skipped[:NAMED_AT_MOST]:
        inside = base is not None and item.path.is_relative_to(base)
        path = item.path.relative_to(base) if inside else item.path
        print(f"  {path}: {item.reason}", file=sys.stderr)
    if len(skipped) > NAMED_AT_MOST:
        print(f"  and {len(skipped) - NAMED_AT_MOST:,} more", file=sys.stderr)


def count(number: int, noun: str) -> str:
    """ "1 image", "1,797 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
