"""The training loop."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from ..data import Batches
from .callbacks import Callback
from .feed import Feed, as_batches, is_array, one_pass, to_input, to_pair
from .graph import CudaCapture, GraphedGradients
from .history import History
from .state import random_state, restore_random_state

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("one_cycle", "constant")
FORMAT = 1

OptimizerLike = str | torch.optim.Optimizer | Callable[[Iterable], torch.optim.Optimizer]
ScheduleLike = str | Callable[[torch.optim.Optimizer, int | None], LRScheduler]


class Evaluation(NamedTuple):
    """Mean loss and share of right answers over a data set."""

    loss: float
    accuracy: float


class Totals:
    """Sums of loss and right answers, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(2, dtype=dtype, device=device)
        self.count = 0

    def of_batch(self, loss: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The two sums over a batch whose mean loss is `loss`."""
        right = (logits.argmax(1) == y).sum()
        return torch.stack((loss.to(self.sums.dtype) * len(y), right.to(self.sums.dtype)))

    def add(self, sums: Tensor, count: int) -> None:
        """Count a batch of `count` images with these sums."""
        self.sums += sums
        self.count += count

    def mean(self) -> Evaluation:
        """Loss and accuracy so far; waits for the device."""
        loss, right = self.sums.tolist()
        return Evaluation(loss / max(self.count, 1), right / max(self.count, 1))


class Trainer:
    """Trains, evaluates and applies a classifier: a model that takes (N, ...) and gives logits (N, classes).

    optimizer: "adamw", "adam", "sgd" (with Nesterov momentum 0.9), an optimizer over the model's parameters,
        or a function from parameters to one. The named ones decay weights but no biases or norms.
    loss: "cross_entropy", or a function of (logits, labels) to a mean.
    device: where to train; by default CUDA where there is a GPU, else the CPU. The model is moved there.
    learning_rate, weight_decay: of an optimizer that is made here; one that is given keeps its own.
    schedule: "constant", "one_cycle" (laid out over each `fit`, up to the learning rates that the optimizer
        was given with), or a function of (optimizer, total steps) to
        a torch scheduler, stepped after every optimiser step.
    label_smoothing: of the objective only; the losses reported are plain cross entropy, so that those of
        training and validation can be compared.
    precision: "fp32", or autocast to "bf16" or "fp16" (with gradient scaling).
    clip_norm: the largest gradient norm, None for no limit.
    graph: on a GPU, capture the forward pass, loss and backward pass of a full batch in a CUDA graph: one
        launch in place of one per kernel, which small models and batches gain most by. Clipping, the
        optimizer's step and the schedule follow it as without, so all of them work. Each `fit` captures anew,
        in its fourth step; batches of other sizes run without. The model and the loss must not wait for the
        device nor branch on a tensor's value.
    seed: seeds torch's generators now and the shuffling of (x, y) pairs. With it, on one machine and with the
        same number of threads, training gives the same bits each time as far as the model's layers do.

    Losses and accuracies are summed on the device and read once per epoch. Raises ValueError for a choice
    that isn't listed here."""

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerLike = "adamw",
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        device: str | torch.device | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        schedule: ScheduleLike = "constant",
        label_smoothing: float = 0.0,
        precision: str = "fp32",
        clip_norm: float | None = None,
        graph: bool = False,
        seed: int | None = None,
    ) -> None:
        _check_choice("precision", precision, tuple(PRECISIONS))
        if isinstance(schedule, str):
            _check_choice("schedule", schedule, SCHEDULES)
        if isinstance(loss, str):
            _check_choice("loss", loss, ("cross_entropy",))
        elif label_smoothing:
            raise ValueError("label_smoothing goes with loss='cross_entropy'; build it into your own loss")
        if seed is not None:
            torch.manual_seed(seed)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if graph and self.device.type != "cuda":
            raise ValueError(
                f"graph=True captures CUDA graphs and needs a CUDA device, but the device is {self.device}"
            )
        self.model = model.to(self.device)
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.graph = graph
        self.seed = seed
        self.learning_rate = learning_rate
        self.optimizer = self._make_optimizer(optimizer, learning_rate, weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.autocast_dtype = PRECISIONS[precision]
        self.scheduler: LRScheduler | None = None
        self.history = History()
        self.epochs = 0
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.epoch = 0
        self.step = 0
        self.steps_per_epoch: int | None = None
        self.images_seen = 0
        self.stopped = False
        self._totals = Totals(self.device)
        self._gradients = self._compute_gradients
        self._epochs_before = 0
        self._train_data: Iterable | None = None
        self._saved: dict[str, Any] | None = None

    # Training

    def fit(
        self,
        train: Any,
        *,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        validation_data: Any = None,
        batch_size: int = 32,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train for `epochs` epochs and return the history, also where `stop()` ended them early.

        train: a pair (x, y) of tensors or arrays, shuffled into batches of `batch_size`; or `Batches`; or any
            iterable of (x, y) batches, such as a DataLoader. uint8 x are divided by 255 unless `Batches`
            normalises them, all x come to the dtype of the model's parameters; y are integers (N,).
        steps_per_epoch: optimiser steps per epoch, whatever the size of the data: it is started over when it
            ends, and the next epoch goes on where the last one stood. By default one pass over the data.
        validation_data: like `train`; all of it is evaluated after every epoch, `Batches` in the order of
            their set and not augmented.

        After `load_state_dict`, goes on exactly where that state was taken; `epochs` counts from the start of
        the run. Raises ValueError for counts below 1, for data that gives nothing, for an iterator as
        validation data of several epochs, for a state that doesn't go with these arguments and for a
        one-cycle schedule without a known number of steps."""
        for name, value in (
            ("epochs", epochs),
            ("steps_per_epoch", steps_per_epoch),
            ("batch_size", batch_size),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        data = as_batches(train, batch_size, shuffle=True, seed=self.seed or 0, device=self.device)
        if data is not train:
            data.epoch = self._epochs_before
        feed = Feed(data)
        self._train_data = data
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch or feed.length
        if validation_data is not None:
            validation_data = as_batches(
                validation_data, max(batch_size, 256), shuffle=False, seed=0, device=self.device
            )
            if epochs > 1 and isinstance(validation_data, Iterator):
                raise ValueError(
                    f"the validation data is an iterator, which can be read once, and there are {epochs} "
                    f"epochs: give something that can be iterated again (a list, a DataLoader, Batches)"
                )
        self._begin(data)
        if self.graph:
            self._gradients = GraphedGradients(
                self._compute_gradients, self.model.parameters(), CudaCapture(self.device)
            )
        try:
            for callback in callbacks:
                callback.on_train_begin(self)
            while self.epoch < epochs and not self.stopped:
                self._run_epoch(feed, validation_data, callbacks)
        finally:
            self._gradients = self._compute_gradients
            for callback in callbacks:
                callback.on_train_end(self)
        return self.history

    def stop(self) -> None:
        """End `fit` after the current step, in a state that `state_dict()` can save; safe in a signal
        handler."""
        self.stopped = True

    def running_metrics(self) -> Evaluation:
        """Loss and accuracy of the current epoch so far; waits for the device."""
        return self._totals.mean()

    def _begin(self, data: Iterable) -> None:
        self.stopped = False
        total = self.steps_per_epoch * self.epochs if self.steps_per_epoch else None
        saved = self._saved
        if saved is None:
            self.scheduler = self._make_scheduler(total)
            self.history = History()
            self.epoch = self.step = 0
            self._totals = Totals(self.device)
            return
        if self.schedule == "one_cycle" and (saved["epochs"], saved["steps_per_epoch"]) != (
            self.epochs,
            self.steps_per_epoch,
        ):
            raise ValueError(
                f"the one-cycle schedule was laid out over {saved['epochs']} epochs of "
                f"{saved['steps_per_epoch']} steps, it can't go on over {self.epochs} of "
                f"{self.steps_per_epoch}"
            )
        if isinstance(data, Batches) and saved["loader"] is not None:
            data.load_state_dict(saved["loader"])
        self.scheduler = self._make_scheduler(total)
        # Making the scheduler has touched the optimizer's learning rates, so both are loaded after it.
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        restore_random_state(saved["random"], self.device)
        self._saved = None

    def _run_epoch(self, feed: Feed, validation_data: Any, callbacks: Sequence[Callback]) -> None:
        self.model.train()
        for batch in feed.take(self.steps_per_epoch, self.step):
            self._train_step(*to_pair(batch, self.device, self._dtype))
            self.step += 1
            for callback in callbacks:
                callback.on_train_batch_end(self)
            if self.stopped:
                return
        logs = self._totals.mean()._asdict()
        if validation_data is not None:
            result = self._evaluate(validation_data, stoppable=True)
            if result is None:
                return
            logs.update({f"val_{name}": value for name, value in result._asdict().items()})
        self.history.append(logs)
        epoch = self.epoch
        self.epoch += 1
        self._epochs_before += 1
        self.step = 0
        self._totals = Totals(self.device)
        for callback in callbacks:
            callback.on_epoch_end(self, epoch, logs)

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        sums = self._gradients(x, y)
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self._totals.add(sums, len(y))
        self.images_seen += len(y)

    def _compute_gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Leave a batch's gradients in the parameters; returns its sums for `Totals`."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self._forward(x)
        if isinstance(self.loss, str):
            objective = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        else:
            objective = self.loss(logits, y)
        self.scaler.scale(objective).backward()
        with torch.no_grad():
            loss = F.cross_entropy(logits, y) if self.label_smoothing else objective
            return self._totals.of_batch(loss, logits, y)

    @property
    def _dtype(self) -> torch.dtype:
        """What the model computes in."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def _forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            self.device.type, self.autocast_dtype or torch.bfloat16, enabled=self.autocast_dtype is not None
        ):
            logits = self.model(x)
        return logits if logits.dtype == torch.float64 else logits.float()

    # Evaluation and prediction

    def evaluate(self, data: Any, *, batch_size: int = 256) -> Evaluation:
        """Loss and accuracy of the model, in evaluation mode, over all of `data` (as for `fit`). Every image
        counts alike, however the batches are cut. Raises ValueError for data that gives nothing."""
        batches = as_batches(data, batch_size, shuffle=False, seed=0, device=self.device)
        result = self._evaluate(batches, stoppable=False)
        assert result is not None
        return result

    def _evaluate(self, batches: Iterable, stoppable: bool) -> Evaluation | None:
        totals = Totals(self.device)
        with self._evaluating():
            for batch in one_pass(batches):
                if stoppable and self.stopped:
                    return None
                x, y = to_pair(batch, self.device, self._dtype)
                logits = self._forward(x)
                loss = F.cross_entropy(logits, y) if isinstance(self.loss, str) else self.loss(logits, y)
                totals.add(totals.of_batch(loss, logits, y), len(y))
        if not totals.count:
            raise ValueError("the evaluation data gave no image")
        return totals.mean()

    def predict(self, data: Any, *, batch_size: int = 256) -> Tensor:
        """The model's outputs (logits; `.softmax(1)` makes them probabilities) in evaluation mode, on the
        CPU.

        data: one tensor or array x, or an iterable of batches x or (x, y); y are ignored. The outputs are in
        the order of the data, for `Batches` in that of their set.

        Raises TypeError for a tuple, which may be meant as a pair (x, y) or as batches.
        """
        if isinstance(data, tuple):
            raise TypeError(
                "predict takes x alone or an iterable of batches, got a tuple: of a pair (x, y) give x, "
                "and batches as a list"
            )
        batches = torch.as_tensor(data).split(batch_size) if is_array(data) else one_pass(data)
        outputs = []
        with self._evaluating():
            for batch in batches:
                x = batch[0] if isinstance(batch, (tuple, list)) else batch
                outputs.append(self._forward(to_input(x, self.device, self._dtype)))
        if not outputs:
            raise ValueError("there is nothing to predict: the data gave no batch")
        return torch.cat(outputs).cpu()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)

    # Saving and restoring

    def state_dict(self) -> dict[str, Any]:
        """Everything that `fit` needs to go on exactly from here, also in the middle of an epoch: a dict that
        `torch.save` writes and `torch.load(weights_only=True)` reads. The position in the data is part of it
        where the data is `Batches` or a pair (x, y). Between `load_state_dict` and `fit`, what was loaded."""
        return self._state_now() if self._saved is None else dict(self._saved)

    def _state_now(self) -> dict[str, Any]:
        loader = self._train_data.state_dict() if isinstance(self._train_data, Batches) else None
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_state(self.device),
            "loader": loader,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "epoch": self.epoch,
            "step": self.step,
            "epochs_before": self._epochs_before,
            "sums": self._totals.sums.cpu(),
            "count": self._totals.count,
            "history": self.history.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave; the next `fit` goes on from there. The model and the settings
        must be those of the trainer that gave it. Raises ValueError where it isn't such a state."""
        names = self._state_now().keys()
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"this is not the state of a trainer: it lacks {', '.join(missing)}")
        if state["format"] != FORMAT:
            raise ValueError(f"the state has format {state['format']}, this version reads {FORMAT}")
        self.model.load_state_dict(state["model"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.epochs = state["epoch"], state["step"], state["epochs"]
        self._epochs_before = state["epochs_before"]
        self._totals = Totals(self.device)
        self._totals.sums += state["sums"].to(self.device)
        self._totals.count = state["count"]
        self.history = History(state["history"])
        # Copied, since an optimizer goes on in the very tensors that it is given.
        self._saved = copy.deepcopy({name: state[name] for name in names})

    # Making the parts

    def _make_optimizer(self, choice: OptimizerLike, rate: float, decay: float) -> torch.optim.Optimizer:
        if isinstance(choice, torch.optim.Optimizer):
            return choice
        if callable(choice):
            return choice(self.model.parameters())
        _check_choice("optimizer", choice, OPTIMIZERS)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError("the model has no parameters to train")
        fused = self.device.type in ("cpu", "cuda") or None
        if choice == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True, fused=fused)
        kind = torch.optim.AdamW if choice == "adamw" else torch.optim.Adam
        return kind(groups, lr=rate, fused=fused)

    def _make_scheduler(self, total: int | None) -> LRScheduler | None:
        if callable(self.schedule):
            return self.schedule(self.optimizer, total)
        if self.schedule == "constant":
            return None
        if total is None:
            raise ValueError("a one-cycle schedule needs steps_per_epoch where the data has no length")
        # OneCycleLR can't cycle a momentum that the optimizer lacks, and shouldn't one that is switched off.
        defaults = self.optimizer.defaults
        cycled = "betas" in defaults or bool(defaults.get("momentum"))
        return OneCycleLR(self.optimizer, max_lr=self._rates, total_steps=total, cycle_momentum=cycled)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
