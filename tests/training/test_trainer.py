import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastcnn.data import Batches
from fastcnn.training import Callback, History, Trainer


def problem(count=50, seed=0):
    """Points in three clusters, told apart by a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=generator)
    x = torch.randn(count, 4, generator=generator) + 3 * nn.functional.one_hot(y, 4)
    return x, y


def make_trainer(seed=0, dropout=0.0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))
    return Trainer(model, seed=seed, device="cpu", **settings)


class Steps(Callback):
    def __init__(self):
        self.batches = []
        self.epochs = []
        self.began = self.ended = 0

    def on_train_begin(self, trainer):
        self.began += 1

    def on_train_batch_end(self, trainer):
        self.batches.append((trainer.epoch, trainer.step))

    def on_epoch_end(self, trainer, epoch, logs):
        self.epochs.append((epoch, dict(logs)))

    def on_train_end(self, trainer):
        self.ended += 1


class StopAfter(Callback):
    def __init__(self, steps):
        self.left = steps

    def on_train_batch_end(self, trainer):
        self.left -= 1
        if not self.left:
            trainer.stop()


def count_optimizer_steps(trainer):
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    return steps


def test_history_has_keras_names():
    trainer = make_trainer()
    history = trainer.fit(problem(), epochs=3, validation_data=problem(seed=1))
    assert isinstance(history, History)
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history.epoch == [0, 1, 2]
    assert all(isinstance(value, float) for values in history.history.values() for value in values)
    assert list(make_trainer().fit(problem(), epochs=1).history) == ["loss", "accuracy"]


def test_training_learns():
    trainer = make_trainer(learning_rate=0.03)
    history = trainer.fit(problem(300), epochs=20, batch_size=30)
    assert history.history["accuracy"][-1] > 0.95
    assert trainer.evaluate(problem(300, seed=1)).accuracy > 0.95


@pytest.mark.parametrize("kind", ["pair", "batches", "loader", "list"])
@pytest.mark.parametrize("count", [7, 50, 500])
def test_steps_per_epoch_is_exact_whatever_the_size(kind, count):
    x, y = problem(count)
    data = {
        "pair": (x.numpy(), y.numpy()),
        "batches": Batches(x, y, 10),
        "loader": DataLoader(TensorDataset(x, y), 10),
        "list": list(zip(x.split(10), y.split(10), strict=True)),
    }[kind]
    trainer, seen = make_trainer(), Steps()
    steps = count_optimizer_steps(trainer)
    trainer.fit(data, epochs=2, steps_per_epoch=100, batch_size=10, callbacks=[seen])
    assert len(steps) == 200
    assert seen.batches == [(epoch, step) for epoch in (0, 1) for step in range(1, 101)]
    assert (seen.began, seen.ended) == (1, 1)


def test_the_place_in_the_data_is_kept_across_epochs():
    x = torch.arange(5.0).view(5, 1)
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2)

        def forward(self, x):
            seen.extend(x.flatten().tolist())
            return self.layer(x)

    batches = [(x[i : i + 1], torch.zeros(1, dtype=torch.int64)) for i in range(5)]
    Trainer(Recorder(), device="cpu").fit(batches, epochs=3, steps_per_epoch=3)
    assert seen == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_an_epoch_is_one_pass_by_default():
    trainer = make_trainer()
    steps = count_optimizer_steps(trainer)
    trainer.fit(problem(50), epochs=2, batch_size=20)
    assert len(steps) == 6


def test_data_that_cannot_be_iterated_again_says_so():
    x, y = problem(40)
    once = zip(x.split(10), y.split(10), strict=True)
    with pytest.raises(ValueError, match="an iterator can be read once"):
        make_trainer().fit(once, epochs=1, steps_per_epoch=10)
    with pytest.raises(ValueError, match="gave no batch"):
        make_trainer().fit([], epochs=1, steps_per_epoch=1)


def test_losses_and_accuracies_weigh_every_image_alike():
    """With a learning rate of 0 the whole epoch sees one model, so its metrics can be computed by hand."""
    x, y = problem(23)
    trainer = make_trainer(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    with torch.no_grad():
        logits = trainer.model(x)
    loss = float(nn.functional.cross_entropy(logits.double(), y))
    accuracy = float((logits.argmax(1) == y).double().mean())
    history = trainer.fit((x, y), batch_size=5, validation_data=Batches(x, y, 7, shuffle=False)).history
    for name in ("loss", "val_loss"):
        assert history[name][0] == pytest.approx(loss, rel=1e-6)
    for name in ("accuracy", "val_accuracy"):
        assert history[name][0] == accuracy
    result = trainer.evaluate((x, y), batch_size=4)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.accuracy == accuracy
    assert list(result) == [result.loss, result.accuracy]


def test_evaluation_and_prediction_are_without_dropout_and_leave_the_mode():
    x, y = problem(30)
    trainer = make_trainer(dropout=0.9)
    trainer.model.train()
    assert trainer.evaluate((x, y)) == trainer.evaluate((x, y))
    assert trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(x)
    torch.testing.assert_close(trainer.predict(x, batch_size=7), expected)
    torch.testing.assert_close(trainer.predict(x.numpy()), expected)
    torch.testing.assert_close(trainer.predict(Batches(x, y, 7, shuffle=False)), expected)
    torch.testing.assert_close(trainer.predict([x[:10], x[10:]]), expected)
    assert not trainer.model.training


def test_bytes_are_brought_to_one():
    model = nn.Sequential(nn.Flatten())
    x = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8)
    trainer = Trainer(model, device="cpu", optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    torch.testing.assert_close(trainer.predict(x), x.flatten(1) / 255)


def test_label_smoothing_shapes_the_objective_only():
    x, y = problem(20)
    plain, smooth = make_trainer(), make_trainer(label_smoothing=0.2)
    settings = {"epochs": 1, "batch_size": 20}
    first = [trainer.fit((x, y), **settings).history["loss"][0] for trainer in (plain, smooth)]
    assert first[0] == pytest.approx(first[1])
    assert not torch.equal(plain.model[0].weight, smooth.model[0].weight)


def test_a_step_is_torchs_own():
    """One epoch against the same loop written out."""
    x, y = problem(12)
    trainer = make_trainer(schedule="one_cycle", clip_norm=0.5, label_smoothing=0.1, learning_rate=0.05)
    trainer.fit(Batches(x, y, 5, seed=3), epochs=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=6)
    batches = Batches(x, y, 5, seed=3)
    for _ in range(2):
        for inputs, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_autocasts_and_learns(precision):
    dtypes = set()
    trainer = make_trainer(precision=precision, learning_rate=0.03)
    trainer.model[0].register_forward_hook(lambda _m, _i, output: dtypes.add(output.dtype))
    history = trainer.fit(problem(300), epochs=10, batch_size=30).history
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert history["accuracy"][-1] > 0.9
    assert trainer.predict(problem()[0]).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_optimizers_by_name(optimizer):
    before = make_trainer(optimizer=optimizer, learning_rate=0.01)
    loss = before.fit(problem(200), epochs=8).history["loss"]
    assert loss[-1] < loss[0] / 1.5


def test_no_step_waits_for_the_device(monkeypatch):
    """Values are read once per epoch, never per step: `.item()` and its like and `.tolist()` are counted."""
    reads = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append("tolist") or tolist(self))

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            if "_local_scalar_dense" in str(function):
                reads.append(str(function))
            return function(*arguments, **(settings or {}))

    trainer = make_trainer(schedule="one_cycle", label_smoothing=0.1, clip_norm=1.0)
    data = problem(100)
    with Watched():
        assert torch.ones(1).item()
        assert len(reads) == 1
        trainer.fit(data, epochs=2, steps_per_epoch=30)
    assert reads[1:] == ["tolist", "tolist"]


@pytest.mark.parametrize("stop_after", [1, 4, 5, 7, 12, 15])
@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_after, steps_per_epoch):
    def settings(callbacks=()):
        return {
            "epochs": 5,
            "steps_per_epoch": steps_per_epoch,
            "validation_data": problem(20, seed=1),
            "batch_size": 11,
            "callbacks": callbacks,
        }

    def fresh(seed=3):
        return make_trainer(seed, dropout=0.3, schedule="one_cycle", label_smoothing=0.1, clip_norm=1.0)

    straight = fresh()
    expected = straight.fit(problem(50), **settings())

    broken = fresh()
    broken.fit(problem(50), **settings([StopAfter(stop_after)]))
    assert broken.stopped
    torch.save(broken.state_dict(), tmp_path / "state.pt")

    resumed = fresh(seed=77)
    torch.manual_seed(1234)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    history = resumed.fit(problem(50), **settings())
    assert history.history == expected.history
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    left, right = (trainer.optimizer.state_dict() for trainer in (straight, resumed))
    assert left["param_groups"] == right["param_groups"]


def test_fitting_again_goes_on_with_the_optimizer_and_another_order():
    twice = make_trainer()
    twice.fit(problem(), epochs=1)
    history = twice.fit(problem(), epochs=1)
    once = make_trainer()
    once.fit(problem(), epochs=2)
    assert len(history) == 1
    for left, right in zip(twice.model.parameters(), once.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_wrong_choices_are_named():
    model = nn.Linear(4, 3)
    for wrong, said in (
        ({"precision": "int8"}, "fp32, bf16, fp16"),
        ({"schedule": "zigzag"}, "one_cycle"),
        ({"optimizer": "magic"}, "adamw"),
        ({"loss": "hinge"}, "cross_entropy"),
        ({"loss": nn.functional.cross_entropy, "label_smoothing": 0.1}, "your own loss"),
    ):
        with pytest.raises(ValueError, match=said):
            Trainer(model, device="cpu", **wrong)
    trainer = Trainer(model, device="cpu")
    x, y = problem()
    for arguments, kind, said in (
        ({"train": (x, y), "epochs": 0}, ValueError, "epochs"),
        ({"train": (x, y), "steps_per_epoch": 0}, ValueError, "steps_per_epoch"),
        ({"train": x}, TypeError, "pair"),
        ({"train": "digits"}, TypeError, "got str"),
        ({"train": (x, nn.functional.one_hot(y))}, TypeError, "integer class numbers"),
        ({"train": [(x, nn.functional.one_hot(y))]}, TypeError, "argmax"),
        ({"train": [x]}, TypeError, "pair"),
    ):
        with pytest.raises(kind, match=said):
            trainer.fit(**arguments)
    endless = Trainer(model, device="cpu", schedule="one_cycle")
    with pytest.raises(ValueError, match="steps_per_epoch"):
        endless.fit(iter([(x, y)]))
    with pytest.raises(ValueError, match="lacks"):
        trainer.load_state_dict({"model": {}})


def part_way(x, y, **settings):
    batches = Batches(x, y, 7, **settings)
    next(iter(batches))
    return batches


def test_evaluation_and_prediction_take_all_of_batches_that_stand_part_way():
    x, y = problem(30)
    trainer = make_trainer()
    batches = part_way(x, y, seed=4)
    place = batches.state_dict()
    assert trainer.evaluate(batches) == trainer.evaluate(Batches(x, y, 7, shuffle=False))
    torch.testing.assert_close(trainer.predict(batches), trainer.predict(x))
    assert batches.state_dict() == place
    straight, shared = make_trainer(), make_trainer()
    expected = straight.fit(Batches(x, y, 7), epochs=3, steps_per_epoch=2, validation_data=(x, y)).history
    both = Batches(x, y, 7)
    history = shared.fit(both, epochs=3, steps_per_epoch=2, validation_data=both).history
    assert history["val_accuracy"] == expected["val_accuracy"]
    assert history["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)
    assert history["loss"] == expected["loss"]


def test_an_iterator_validates_one_epoch_only():
    x, y = problem(20)

    def once():
        return iter([(x, y)])

    assert "val_loss" in make_trainer().fit((x, y), epochs=1, validation_data=once()).history
    trainer = make_trainer()
    steps = count_optimizer_steps(trainer)
    with pytest.raises(ValueError, match="an iterator, which can be read once, and there are 2 epochs"):
        trainer.fit((x, y), epochs=2, validation_data=once())
    assert not steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.uint8, torch.int32])
def test_inputs_come_to_the_dtype_of_the_model(dtype):
    x, y = problem(30)
    x = (x.abs() * 3).to(dtype)
    in_floats = x / 255 if dtype == torch.uint8 else x.float()
    for trainer in (make_trainer(), Trainer(make_trainer().model.double(), device="cpu")):
        expected = trainer.predict(in_floats)
        torch.testing.assert_close(trainer.predict(x.numpy()), expected)
        torch.testing.assert_close(trainer.predict(Batches(x.numpy(), y, 7)), expected)
        trainer.fit((x.numpy(), y.numpy()), validation_data=[(x.numpy(), y.numpy())])


def test_labels_may_be_a_list():
    x, y = problem(30)
    left, right = make_trainer(), make_trainer()
    assert left.fit((x, y.tolist())).history == right.fit((x, y)).history
    assert left.evaluate((x.numpy(), tuple(y.tolist()))) == right.evaluate((x, y))
    with pytest.raises(TypeError, match="integer class numbers"):
        left.fit((x, [0.5] * 30))


def test_predicting_a_pair_is_refused():
    with pytest.raises(TypeError, match=r"of a pair \(x, y\) give x"):
        make_trainer().predict(problem())


def test_a_loaded_state_stays_whole_until_fit_takes_it():
    data, settings = problem(50), {"epochs": 3, "batch_size": 11}
    straight = make_trainer(schedule="one_cycle")
    expected = straight.fit(data, **settings).history
    broken = make_trainer(schedule="one_cycle")
    broken.fit(data, **settings, callbacks=[StopAfter(7)])
    state = broken.state_dict()
    resumed = make_trainer(seed=5, schedule="one_cycle")
    with pytest.raises(ValueError, match="format 9, this version reads 1"):
        resumed.load_state_dict({**state, "format": 9})
    resumed.load_state_dict({**state, "best": None})
    pending = resumed.state_dict()
    assert pending.keys() == state.keys()
    for name in ("scheduler", "loader", "epoch", "step", "count", "history"):
        assert pending[name] == state[name]
    for wrong, said in (
        ({**settings, "epochs": 9}, "laid out over 3 epochs"),
        ({**settings, "batch_size": 10, "steps_per_epoch": 5}, "batch_size 11, this one has 10"),
    ):
        with pytest.raises(ValueError, match=said):
            resumed.fit(data, **wrong)
        assert resumed.state_dict()["scheduler"] == state["scheduler"]
    passed_on = make_trainer(seed=6, schedule="one_cycle")
    passed_on.load_state_dict(resumed.state_dict())
    for trainer in (resumed, passed_on):
        assert trainer.fit(data, **settings).history == expected


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_cycle_rises_to_the_rates_of_a_given_optimizer(momentum):
    model = make_trainer().model
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[3].parameters()}],
        lr=0.02,
        momentum=momentum,
    )
    trainer = Trainer(model, optimizer=optimizer, schedule="one_cycle", device="cpu")
    rates, momenta = [], []

    class Rates(Callback):
        def on_train_batch_end(self, trainer):
            rates.append([group["lr"] for group in optimizer.param_groups])
            momenta.append(optimizer.param_groups[0]["momentum"])

    for _ in range(2):
        rates.clear()
        trainer.fit(problem(200), epochs=2, batch_size=10, callbacks=[Rates()])
        highest = torch.tensor(rates).amax(0)
        torch.testing.assert_close(highest, torch.tensor([0.5, 0.02]), rtol=0.02, atol=0)
    assert len(set(momenta)) == 1 if not momentum else len(set(momenta)) > 10


def test_one_cycle_takes_an_optimizer_without_momentum():
    trainer = make_trainer(
        optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.05), schedule="one_cycle"
    )
    trainer.fit(problem(50))
