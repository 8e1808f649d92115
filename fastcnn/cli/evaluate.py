"""`fastcnn eval`."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from .. import data
from .._extras import check_installed
from ..data import ImageSet, Skipped
from ..training import Run, RunConfig, Trainer
from .common import count, evaluation_batches, find_device, report_skipped, trained_model
from .errors import UserError
from .progress import reading_progress, say


@dataclass
class Scored:
    """The images to evaluate on, where they are from, and what couldn't be read."""

    images: ImageSet
    source: str
    split: str
    skipped: list[Skipped]


def main(arguments: argparse.Namespace) -> int:
    """Print loss and accuracy of a run's weights."""
    check_installed("rich", "safetensors")
    run = Run.open(arguments.run)
    device = find_device(arguments.device)
    model = trained_model(run, arguments.weights, device)
    scored = _find_images(run, arguments.data, arguments.json)
    batches = evaluation_batches(scored.images, run.config, device, arguments.batch_size)
    loss, accuracy = Trainer(model, device=device).evaluate(batches)
    number = scored.images.readable()
    if arguments.json:
        result = {"loss": loss, "accuracy": accuracy, "images": number}
        say(json.dumps({**result, "data": scored.source, "split": scored.split}))
    else:
        kind = "test image" if scored.split == "test" else "image"
        say(f"loss {loss:.4f}  accuracy {accuracy:.2%}  ({count(number, kind)} of {scored.source})")
    report_skipped(scored.skipped)
    return 0


def _find_images(run: Run, source: str | None, quiet: bool) -> Scored:
    """The test images of the run's own data set or of the digits, or all images of another folder."""
    own = run.config.data.source
    if source is None or (source != "digits" and _is_folder(own, source)):
        source = own
    with reading_progress(quiet) as progress:
        if source in (own, "digits"):
            return _test_images(run, run.config, source, progress)
        images, skipped = data.labelled_folder(
            source,
            run.config.data.classes,
            channels=run.config.data.channels,
            image_size=run.config.data.image_size,
            memory_limit=run.config.data.memory_limit,
            progress=progress,
        )
        return Scored(images, str(data.evaluation_folder(source)), "all", skipped)


def _is_folder(own: str, source: str) -> bool:
    """Whether the folder `source` is the run's own."""
    return own != "digits" and Path(source).expanduser().resolve() == Path(own)


def _test_images(run: Run, config: RunConfig, source: str, progress: data.Progress | None) -> Scored:
    splits = data.load(
        source,
        channels=config.data.channels,
        image_size=config.data.image_size,
        seed=config.data.seed,
        memory_limit=config.data.memory_limit,
        progress=progress,
    )
    if splits.classes != config.data.classes:
        raise UserError(
            f"{source} has the classes {', '.join(splits.classes)}; "
            f"{run} was trained on {', '.join(config.data.classes)}"
        )
    if source == config.data.source and splits.fingerprint() != config.data.fingerprint:
        raise UserError(
            f"the images of {source} are not those that {run} was trained on: its test images can't be told "
            f"from them; name a folder of other images to evaluate on all of them"
        )
    return Scored(splits.test, source, "test", splits.skipped)
