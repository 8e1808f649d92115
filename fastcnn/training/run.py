"""The run folder: what a training run leaves behind, and what it needs to go on."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._atomic import write_atomically, write_text_atomically
from .._extras import require
from .callbacks import Callback
from .history import History
from .trainer import Trainer

FORMAT = 1


class RunError(ValueError):
    """A run folder can't be made, read or gone on with; the message says why."""


@dataclass
class DataConfig:
    """Where the images came from and what they were brought to."""

    source: str
    classes: list[str]
    channels: int
    image_size: int
    mean: list[float]
    std: list[float]
    seed: int
    memory_limit: int
    counts: dict[str, int]
    fingerprint: str


@dataclass
class TrainingConfig:
    """How it was trained."""

    epochs: int = 30
    steps_per_epoch: int | None = None
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    schedule: str = "one_cycle"
    label_smoothing: float = 0.1
    precision: str = "fp32"
    clip_norm: float | None = None
    augment: str = "mild"
    seed: int = 0


@dataclass
class RunConfig:
    """All of config.json."""

    model: str
    data: DataConfig
    training: TrainingConfig
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        """ASCII, since the names of folders need not be text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Raises ValueError, KeyError or TypeError for text that isn't a configuration."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']}, this version reads {FORMAT}")
        # Runs from before there was augmentation were trained without.
        values["training"].setdefault("augment", "none")
        parts = {"data": DataConfig, "training": TrainingConfig}
        for name, kind in parts.items():
            values[name] = kind(**{part.name: values[name][part.name] for part in fields(kind)})
        return cls(**values)


class Run:
    """A run folder: config.json, history.csv, curves.png, best.safetensors and last.safetensors (weights),
    last.pt (the state to go on from), skipped.txt where files could not be read and, once finished,
    result.json. Every file is replaced atomically."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, path: str | os.PathLike | None, name: str, config: RunConfig) -> "Run":
        """Make the folder `path`, or else the first free runs/<name>-<n>, and write its config.json.

        Raises `RunError` where `path` exists and isn't an empty folder, or nothing can be written there.
        """
        try:
            folder = _next_folder(name) if path is None else _own_folder(Path(path).expanduser())
            run = cls(folder, config)
            run.save_config()
        except OSError as error:
            where = "runs/" if path is None else path
            raise RunError(f"the run folder {where} can't be written: {error.strerror or error}") from error
        return run

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Run":
        """The run in the folder `path`. Raises `RunError` where there is none or its config.json is
        damaged."""
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise RunError(f"there is no run folder {folder}")
        file = folder / "config.json"
        if not file.is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.json")
        try:
            config = RunConfig.from_json(file.read_text(encoding="utf-8"))
        except KeyError as error:
            raise RunError(f"{file} is damaged: it lacks {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(f"{file} is damaged: {error}") from error
        return cls(folder, config)

    def save_config(self) -> None:
        """Write config.json."""
        write_text_atomically(self.path / "config.json", self.config.to_json())

    # Weights

    def save_weights(self, which: str, model: nn.Module, notes: dict[str, Any]) -> None:
        """Write `which`.safetensors, with `notes` as its metadata."""
        safetensors = require("safetensors.torch")
        # One entry: several are written in an order of chance, and equal runs should leave equal files.
        metadata = {"fastcnn": json.dumps(notes)}
        write_atomically(
            self.path / f"{which}.safetensors",
            lambda file: safetensors.save_model(model, str(file), metadata),
        )

    def load_weights(self, which: str, model: nn.Module) -> None:
        """Read `which`.safetensors into `model`. Raises `RunError` where it is missing, damaged or another
        model's."""
        safetensors = require("safetensors.torch")
        file = self.path / f"{which}.safetensors"
        if not file.is_file():
            raise RunError(f"{self.path} has no {file.name}: no epoch of this run was completed")
        try:
            safetensors.load_model(model, str(file))
        except RuntimeError as error:
            raise RunError(
                f"{file} does not fit the model {self.config.model}: {_first_line(error)}"
            ) from error
        except Exception as error:  # safetensors has its own exception without a public base
            raise RunError(f"{file} is damaged: {_first_line(error)}") from error

    # State

    def save_state(self, state: dict[str, Any]) -> None:
        """Write last.pt."""
        write_atomically(self.path / "last.pt", lambda file: torch.save(state, file))

    def load_state(self) -> dict[str, Any]:
        """Read last.pt. Raises `RunError` where it is missing or damaged."""
        file = self.path / "last.pt"
        if not file.is_file():
            raise RunError(
                f"{self.path} can't be resumed: it has no last.pt, nothing was saved before it ended"
            )
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch raise many kinds on a damaged file
            raise RunError(
                f"{file} is damaged, this run can't be resumed ({type(error).__name__}); "
                f"its best.safetensors can still be evaluated"
            ) from error

    # Reports

    def save_history(self, history: History) -> None:
        """Write history.csv."""
        write_text_atomically(self.path / "history.csv", history.to_csv())

    def save_curves(self, history: History, best_epoch: int | None) -> None:
        """Draw curves.png."""
        from .curves import draw_curves

        title = f"{self.config.model} on {Path(self.config.data.source).name}".encode(
            errors="replace"
        ).decode()
        write_atomically(self.path / "curves.png", lambda file: draw_curves(history, file, title, best_epoch))

    def save_skipped(self, lines: Sequence[str]) -> None:
        """Write skipped.txt, the files that could not be read."""
        text = "".join(f"{line}\n" for line in lines)
        # What is not text in a file's name is shown, not kept.
        write_text_atomically(self.path / "skipped.txt", text.encode(errors="backslashreplace").decode())

    def save_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        write_text_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    def remove_result(self) -> None:
        """Remove result.json: the run goes on."""
        (self.path / "result.json").unlink(missing_ok=True)

    def result(self) -> dict[str, Any] | None:
        """What `save_result` wrote; None while the run isn't finished."""
        file = self.path / "result.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"{file} is damaged: {error}") from error


class Checkpoints(Callback):
    """Saves the state, the weights and the history of a run after every epoch.

    The best epoch has the highest validation accuracy, of equal ones the lowest validation loss.
    """

    def __init__(self, run: Run, best: dict[str, Any] | None = None) -> None:
        self.run = run
        self.best = best

    def on_epoch_end(self, trainer: Trainer, epoch: int, logs: dict[str, float]) -> None:
        """Best first, state last: whatever a crash leaves between them, resuming writes again alike."""
        notes = {"epoch": epoch + 1, **logs}
        if self._is_best(logs):
            self.best = notes
            self.run.save_weights("best", trainer.model, notes)
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save where `trainer` stands now, be it in the middle of an epoch."""
        self.run.save_weights("last", trainer.model, {"epoch": trainer.epoch, "step": trainer.step})
        self.run.save_history(trainer.history)
        self.run.save_state({**trainer.state_dict(), "best": self.best})

    def _is_best(self, logs: dict[str, float]) -> bool:
        if self.best is None:
            return True
        old, new = (
            (notes.get("val_accuracy", notes["accuracy"]), -notes.get("val_loss", notes["loss"]))
            for notes in (self.best, logs)
        )
        return new > old


def _next_folder(name: str) -> Path:
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    taken = [entry.name.rpartition("-") for entry in runs.iterdir()]
    number = max((int(n) for stem, _, n in taken if stem == name and n.isdecimal()), default=0) + 1
    while True:
        folder = runs / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run began meanwhile
            number += 1
            continue
        return folder


def _own_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} already exists and is not an empty folder: give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
