"""`fastcnn train`."""

import argparse
import math
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import data
from .._extras import check_installed
from .._version import __version__
from ..data import Augment, Batches, Splits
from ..data.folder import MEMORY_LIMIT
from ..training import Callback, Checkpoints, DataConfig, Run, RunConfig, Trainer, TrainingConfig
from .common import build_model, count, evaluation_batches, find_device, report_skipped
from .errors import UserError
from .interrupts import stops
from .progress import TrainingProgress, clock, reading_progress, say
from .threads import suitable_threads

TRAINING_FLAGS = {
    "epochs": "epochs",
    "steps_per_epoch": "steps_per_epoch",
    "batch_size": "batch_size",
    "lr": "learning_rate",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "weight_decay": "weight_decay",
    "label_smoothing": "label_smoothing",
    "clip_norm": "clip_norm",
    "precision": "precision",
    "augment": "augment",
    "seed": "seed",
}
FIXED_BY_RUN = (*TRAINING_FLAGS, "model", "image_size", "channels", "memory_mb")


class Diverged(Callback):
    """Ends training when the loss is no longer a number, before anything is saved."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss became {logs['loss']} in epoch {epoch + 1}: training diverged; try a lower --lr, "
                f"--clip-norm 1 or --precision fp32"
            )


def main(arguments: argparse.Namespace) -> int:
    """Train or resume, test the best weights, and leave a run folder. Returns the exit status."""
    # Asked for now rather than missed after an hour of training.
    check_installed("rich", "safetensors", "matplotlib", "sklearn", "PIL")
    if arguments.resume is not None:
        return _resume(arguments)
    if arguments.data is None:
        raise UserError("train what? give digits, a folder of images, or --resume RUN")
    return _start(arguments)


def _start(arguments: argparse.Namespace) -> int:
    device = find_device(arguments.device)
    given = vars(arguments)
    training = replace(
        TrainingConfig(),
        **{field: given[flag] for flag, field in TRAINING_FLAGS.items() if flag in given},
    )
    memory_limit = given["memory_mb"] << 20 if "memory_mb" in given else MEMORY_LIMIT
    splits = _load(
        arguments.data,
        arguments.quiet,
        channels=given.get("channels"),
        image_size=given.get("image_size", 28),
        seed=training.seed,
        memory_limit=memory_limit,
    )
    mean, std = splits.statistics(training.seed)
    source = (
        arguments.data if arguments.data == "digits" else str(Path(arguments.data).expanduser().resolve())
    )
    config = RunConfig(
        model=given.get("model", "small_cnn"),
        data=DataConfig(
            source=source,
            classes=splits.classes,
            channels=splits.channels,
            image_size=splits.image_size,
            mean=mean,
            std=std,
            seed=training.seed,
            memory_limit=memory_limit,
            counts={
                "train": len(splits.train),
                "validation": len(splits.validation),
                "test": len(splits.test),
            },
            fingerprint=splits.fingerprint(),
        ),
        training=training,
        versions={"fastcnn": __version__, "torch": torch.__version__},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    trainer = _make_trainer(config, device, arguments.graph)
    run = Run.create(arguments.out, splits.name, config)
    return _train(run, trainer, splits, Checkpoints(run), arguments)


def _resume(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    run = Run.open(arguments.resume)
    result = run.result()
    training = run.config.training
    longer = given.get("epochs", 0) > training.epochs and training.schedule == "constant"
    for flag in FIXED_BY_RUN:
        if flag in given and not (flag == "epochs" and longer):
            raise UserError(
                f"--{flag.replace('_', '-')} can't be changed on --resume: it is part of the run {run}"
                + (" (more epochs only go with --schedule constant)" if flag == "epochs" else "")
            )
    if arguments.out is not None:
        raise UserError("--out and --resume don't go together: a run is resumed in its own folder")
    if result is not None and not longer:
        raise UserError(
            f"{run} is complete ({training.epochs} of {training.epochs} epochs): there is nothing to resume; "
            f"test it with: fastcnn eval {run}"
        )
    state = run.load_state()
    device = find_device(arguments.device)
    settings = run.config.data
    splits = _load(
        arguments.data or settings.source,
        arguments.quiet,
        channels=settings.channels,
        image_size=settings.image_size,
        seed=settings.seed,
        memory_limit=settings.memory_limit,
    )
    if splits.fingerprint() != settings.fingerprint or splits.classes != settings.classes:
        raise UserError(
            f"the images of {arguments.data or settings.source} are not those that {run} began with "
            f"({_counts(splits)} now): resuming could train on test images; start a new run"
        )
    trainer = _make_trainer(run.config, device, arguments.graph)
    try:
        trainer.load_state_dict(state)
        best = state["best"]
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run}/last.pt does not fit this run: {str(error).splitlines()[0].rstrip(':')}"
        ) from error
    if longer:
        # In this order, so that the run can be resumed wherever it is cut off.
        run.remove_result()
        training.epochs = given["epochs"]
        run.save_config()
    say(f"resuming {run} in epoch {trainer.epoch + 1}, step {trainer.step + 1}", arguments.quiet)
    return _train(run, trainer, splits, Checkpoints(run, best), arguments)


def _load(source: str, quiet: bool, **settings: Any) -> Splits:
    with reading_progress(quiet) as progress:
        return data.load(source, progress=progress, **settings)


def _make_trainer(config: RunConfig, device: torch.device, graph: bool) -> Trainer:
    if graph and device.type != "cuda":
        raise UserError(f"--graph captures CUDA graphs and needs a GPU, but the device is {device}")
    training = config.training
    torch.manual_seed(training.seed)
    model = build_model(config)
    return Trainer(
        model,
        optimizer=training.optimizer,
        device=device,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        label_smoothing=training.label_smoothing,
        precision=training.precision,
        clip_norm=training.clip_norm,
        graph=graph,
        seed=training.seed,
    )


def _train(
    run: Run, trainer: Trainer, splits: Splits, checkpoints: Checkpoints, arguments: argparse.Namespace
) -> int:
    with suitable_threads(run.config, trainer.device):
        return _train_and_test(run, trainer, splits, checkpoints, arguments)


def _train_and_test(
    run: Run, trainer: Trainer, splits: Splits, checkpoints: Checkpoints, arguments: argparse.Namespace
) -> int:
    config, training, quiet = run.config, run.config.training, arguments.quiet
    _introduce(run, trainer, splits, quiet)
    batches = Batches(
        splits.train.images,
        splits.train.labels,
        training.batch_size,
        seed=training.seed,
        mean=config.data.mean,
        std=config.data.std,
        augment=Augment() if training.augment == "mild" else None,
        device=trainer.device,
    )
    began = time.monotonic()
    with stops(trainer) as interrupt:
        trainer.fit(
            batches,
            epochs=training.epochs,
            steps_per_epoch=training.steps_per_epoch,
            validation_data=evaluation_batches(splits.validation, config, trainer.device),
            callbacks=[Diverged(), checkpoints, TrainingProgress(quiet)],
        )
        if trainer.stopped and (trainer.epoch < trainer.epochs):
            checkpoints.save(trainer)
    best = checkpoints.best
    if len(trainer.history):
        run.save_curves(trainer.history, best and best["epoch"])
    if interrupt.number is not None and trainer.epoch < trainer.epochs:
        report_skipped(splits.skipped, splits.root, run)
        where = f"in epoch {trainer.epoch + 1} of {trainer.epochs}"
        print(
            f"interrupted {where}; everything is saved, go on with: fastcnn train --resume {run}",
            file=sys.stderr,
        )
        return interrupt.exit_status

    run.load_weights("best", trainer.model)
    loss, accuracy = trainer.evaluate(evaluation_batches(splits.test, config, trainer.device))
    tested = splits.test.readable()
    run.save_result({"test_loss": loss, "test_accuracy": accuracy, "test_images": tested, "best": best})
    report_skipped(splits.skipped, splits.root, run)
    say(f"trained in {clock(time.monotonic() - began)}; best epoch {best['epoch']}; saved in {run}", quiet)
    say(f"test loss {loss:.4f}  test accuracy {accuracy:.2%}  ({count(tested, 'image')})")
    return _check_target(accuracy, arguments.target_accuracy)


def _introduce(run: Run, trainer: Trainer, splits: Splits, quiet: bool) -> None:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    size = splits.image_size
    say(f"data    {splits.name}: {_counts(splits)}; {count(len(splits.classes), 'class')}", quiet)
    say(f"images  {size}x{size}, {'grey' if splits.channels == 1 else 'colour'}", quiet)
    say(f"model   {run.config.model}, {parameters:,} parameters, on {_device_name(trainer.device)}", quiet)
    say(f"run     {run}", quiet)


def _counts(splits: Splits) -> str:
    train, validation, test = len(splits.train), len(splits.validation), len(splits.test)
    return f"{train:,} train, {validation:,} validation and {test:,} test images"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"the CPU ({count(torch.get_num_threads(), 'thread')})"


def _check_target(accuracy: float, target: float | None) -> int:
    if target is None or accuracy >= target:
        return 0
    print(f"fastcnn: the test accuracy {accuracy:.2%} is below the target {target:.2%}", file=sys.stderr)
    return 1
