import json
import os

import pytest
import torch
from torch import nn

from fastcnn._atomic import write_atomically, write_text_atomically
from fastcnn.training import (
    Checkpoints,
    DataConfig,
    History,
    Run,
    RunConfig,
    RunError,
    Trainer,
    TrainingConfig,
)


@pytest.fixture
def config():
    data = DataConfig("pets", ["cat", "dog"], 1, 28, [1.5], [2.5], 0, 1 << 20, {"train": 3}, "abc")
    return RunConfig("small_cnn", data, TrainingConfig(epochs=4), {"torch": "x"}, "now")


@pytest.fixture
def run(tmp_path, config):
    return Run.create(tmp_path / "run", "pets", config)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "state"
    write_text_atomically(file, "old")

    def fail_half_way(temporary):
        temporary.write_text("ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(file, fail_half_way)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]

    def no_sync(_handle):
        assert file.read_text() == "old"
        raise OSError("no sync")

    monkeypatch.setattr(os, "fsync", no_sync)
    with pytest.raises(OSError, match="no sync"):
        write_text_atomically(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["state"]


def test_files_are_synced_before_they_take_their_place(tmp_path, monkeypatch):
    events = []
    sync, put = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append("sync") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append("replace") or put(old, new))
    write_text_atomically(tmp_path / "file", "text")
    assert events == ["sync", "replace", "sync"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_checkpoint_that_fails_leaves_the_old_one(run, monkeypatch):
    run.save_state({"step": 1})

    def torn(state, file):
        file.write_bytes(b"half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        run.save_state({"step": 2})
    assert run.load_state() == {"step": 1}
    assert sorted(os.listdir(run.path)) == ["config.json", "last.pt"]


def test_the_configuration_comes_back(run, config):
    assert Run.open(run.path).config == config


def test_run_folders_are_numbered_and_never_shared(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    names = [str(Run.create(None, name, config)) for name in ("pets", "pets", "cars")]
    assert names == ["runs/pets-1", "runs/pets-2", "runs/cars-1"]
    (tmp_path / "runs/pets-1/config.json").unlink()
    (tmp_path / "runs/pets-1").rmdir()
    (tmp_path / "runs/pets-draft").mkdir()
    assert str(Run.create(None, "pets", config)) == "runs/pets-3"
    with pytest.raises(RunError, match="already exists"):
        Run.create("runs/pets-3", "pets", config)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="already exists"):
        Run.create("file", "pets", config)
    with pytest.raises(RunError, match="can't be written"):
        Run.create("file/below", "pets", config)


def test_weights_go_to_safetensors_and_back(run):
    torch.manual_seed(0)
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    run.save_weights("best", model, {"epoch": 3})
    run.load_weights("best", other)
    assert torch.equal(model.weight, other.weight)
    from safetensors import safe_open

    with safe_open(run.path / "best.safetensors", "pt") as file:
        assert file.metadata() == {"fastcnn": '{"epoch": 3}'}
    with pytest.raises(RunError, match="does not fit the model small_cnn"):
        run.load_weights("best", nn.Linear(4, 2))
    with pytest.raises(RunError, match=r"no last\.safetensors"):
        run.load_weights("last", other)
    (run.path / "best.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="damaged"):
        run.load_weights("best", other)


def test_damage_is_told_from_absence(run, tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"no config\.json"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match=r"no last\.pt"):
        run.load_state()
    run.save_state({"weights": torch.zeros(1000)})
    whole = (run.path / "last.pt").read_bytes()
    (run.path / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"last\.pt is damaged"):
        run.load_state()
    file = run.path / "config.json"
    good = json.loads(file.read_text())
    lacking = {**good, "data": {key: value for key, value in good["data"].items() if key != "classes"}}
    for text, said in (
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps(lacking), "lacks 'classes'"),
        (json.dumps({**good, "format": 9}), "format 9"),
    ):
        file.write_text(text)
        with pytest.raises(RunError, match=said):
            Run.open(run.path)


def test_the_best_epoch_is_kept(run):
    trainer = Trainer(nn.Linear(2, 2), device="cpu")
    checkpoints = Checkpoints(run)
    best = []
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.9, 0.5), (0.9, 0.6), (0.9, 0.4), (0.8, 0.1)]):
        with torch.no_grad():
            trainer.model.weight.fill_(epoch)
        logs = {"loss": 0.0, "accuracy": 0.0, "val_loss": loss, "val_accuracy": accuracy}
        trainer.history.append(logs)
        checkpoints.on_epoch_end(trainer, epoch, logs)
        best.append(checkpoints.best["epoch"])
    assert best == [1, 2, 2, 4, 4]
    for which, value in (("best", 3), ("last", 4)):
        run.load_weights(which, trainer.model)
        assert (trainer.model.weight == value).all()
    assert run.load_state()["best"]["epoch"] == 4
    assert len((run.path / "history.csv").read_text().splitlines()) == 6


def test_history_as_csv_is_exact():
    history = History()
    history.append({"loss": 1 / 3, "accuracy": 0.5})
    history.append({"loss": 0.1, "accuracy": 1.0})
    assert history.to_csv() == "epoch,loss,accuracy\n1,0.3333333333333333,0.5\n2,0.1,1.0\n"
    with pytest.raises(ValueError, match="metrics"):
        history.append({"loss": 1.0})


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("epochs", [1, 12])
def test_curves_are_drawn(run, epochs, validation):
    from PIL import Image

    history = History()
    for epoch in range(epochs):
        logs = {"loss": 1 / (epoch + 1), "accuracy": epoch / epochs}
        history.append({**logs, **({f"val_{k}": v for k, v in logs.items()} if validation else {})})
    run.save_curves(history, 1)
    with Image.open(run.path / "curves.png") as image:
        assert image.size == (1500, 600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_a_run_from_before_augmentation_was_trained_without(config):
    values = json.loads(config.to_json())
    del values["training"]["augment"]
    assert RunConfig.from_json(json.dumps(values)).training.augment == "none"


def test_a_name_that_is_not_text_is_kept(run):
    name = os.fsdecode(b"chat\xe9")
    run.config.data.classes = [name, "dog"]
    run.save_config()
    assert Run.open(run.path).config.data.classes == [name, "dog"]
