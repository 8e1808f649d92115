"""The command line, as users run it."""

import csv
import importlib.util
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastcnn._extras import MissingExtraError
from fastcnn.cli.progress import TrainingProgress
from fastcnn.data import LazyImages, load
from fastcnn.training import Run

from .conftest import command, draw, environment, run_fastcnn, run_process

FAST = ("--image-size", "22", "--batch-size", "64", "--seed", "1")

FOUR_EPOCHS = ("train", "digits", "--epochs", "4", "--steps-per-epoch", "100", *FAST, "--batch-size", "8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few epochs over the digits, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_process("train", "digits", "--epochs", "3", *FAST, cwd=folder)
    return folder, done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of three digits as they come, larger than the model's images."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("pictures")
    raw = load_digits()
    for index in range(3):
        pixels = (raw.images[index] * (255 / 16)).round().astype("uint8")
        Image.fromarray(pixels).resize((56, 56), Image.Resampling.BILINEAR).save(folder / f"{index}.png")
    return folder


def test_training_prints_lines_and_leaves_a_run(trained):
    folder, done = trained
    assert "\x1b" not in done.stdout
    assert "1,257 train, 180 validation and 360 test images; 10 classes" in done.stdout
    epochs = re.findall(
        r"epoch (\d)/3  loss \d\.\d{4}  accuracy +[\d.]+%  val_loss \d\.\d{4}  val_accuracy +[\d.]+%"
        r"  [\d,]+ images/s  ETA \d+:\d\d",
        done.stdout,
    )
    assert epochs == ["1", "2", "3"]
    last = done.stdout.splitlines()[-1]
    loss, accuracy = re.fullmatch(r"test loss (\S+)  test accuracy (\S+)%  \(360 images\)", last).groups()
    run = folder / "runs" / "digits-1"
    assert sorted(os.listdir(run)) == [
        "best.safetensors",
        "config.json",
        "curves.png",
        "history.csv",
        "last.pt",
        "last.safetensors",
        "result.json",
    ]
    result = json.loads((run / "result.json").read_text())
    assert f"{result['test_loss']:.4f} {result['test_accuracy']:.2%}" == f"{loss} {accuracy}%"
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["classes"] == list("0123456789")
    assert config["training"]["epochs"] == 3


def test_the_same_seed_gives_the_same_weights(trained, tmp_path):
    folder, _ = trained
    run_fastcnn("train", "digits", "--epochs", "3", *FAST, "--out", "again", "--quiet", cwd=tmp_path)
    for name in ("best.safetensors", "last.safetensors", "history.csv", "result.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "runs/digits-1" / name).read_bytes()


def test_eval_repeats_the_test_result(trained):
    folder, done = trained
    said = re.search(r"test loss (\S+)  test accuracy (\S+)", done.stdout).groups()
    again = run_fastcnn("eval", "runs/digits-1", cwd=folder).stdout
    assert again == f"loss {said[0]}  accuracy {said[1]}  (360 test images of digits)\n"
    result = json.loads(run_fastcnn("eval", "runs/digits-1", "digits", "--json", cwd=folder).stdout)
    kept = json.loads((folder / "runs/digits-1/result.json").read_text())
    assert result == {
        "loss": kept["test_loss"],
        "accuracy": kept["test_accuracy"],
        "images": 360,
        "data": "digits",
        "split": "test",
    }


def test_predict_names_class_and_probability(trained, pictures, tmp_path):
    run = trained[0] / "runs" / "digits-1"
    files = [pictures / f"{index}.png" for index in range(3)]
    records = json.loads(run_fastcnn("predict", run, *files, "--json", "--top-k", "10", cwd=tmp_path).stdout)
    assert [record["file"] for record in records] == [str(file) for file in files]
    for record in records:
        assert record["class"] == record["top"][0]["class"]
        probabilities = [guess["probability"] for guess in record["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert {guess["class"] for guess in record["top"]} == set("0123456789")
    lines = run_fastcnn("predict", run, pictures, cwd=tmp_path).stdout.splitlines()
    expected = [f"{record['file']}  {record['class']} {record['probability']:.1%}" for record in records]
    assert lines == expected


def test_predict_goes_on_past_unreadable_files(trained, pictures, tmp_path):
    run = trained[0] / "runs" / "digits-1"
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    done = run_fastcnn("predict", run, broken, pictures / "0.png", "--json", cwd=tmp_path)
    assert [record["file"] for record in json.loads(done.stdout)] == [str(pictures / "0.png")]
    assert "skipped 1 unreadable file" in done.stderr
    assert "broken.png" in done.stderr
    nothing = run_fastcnn("predict", run, broken, "--json", cwd=tmp_path, status=1)
    assert json.loads(nothing.stdout) == []


def test_a_folder_is_trained_evaluated_and_predicted(make_folder, tmp_path, monkeypatch):
    root = make_folder(classes={"up": 40, "down": 40, "left": 40}, colour=True)
    (root / "up" / "broken.jpg").write_text("no picture")
    (root / "up" / "notes.txt").write_text("no picture either")
    settings = ("--epochs", "6", "--batch-size", "16", "--target-accuracy", "90", "--image-size", "56")
    done = run_fastcnn("train", root, *settings, "--out", "run", cwd=tmp_path)
    assert "56x56, colour" in done.stdout
    assert "skipped 1 unreadable file:\n  up/broken.jpg: not an image" in done.stderr
    assert "notes.txt" not in done.stderr
    assert (tmp_path / "run/skipped.txt").read_text().startswith("up/broken.jpg: not an image")
    kept = json.loads((tmp_path / "run/result.json").read_text())
    for data in ((), (root,), (f"{root}/../{root.name}",)):
        evaluated = json.loads(run_fastcnn("eval", "run", *data, "--json", cwd=tmp_path).stdout)
        assert evaluated == {
            "loss": kept["test_loss"],
            "accuracy": kept["test_accuracy"],
            "images": 24,
            "data": str(root),
            "split": "test",
        }
    other = make_folder("other", classes={"up": 3, "down": 4}, colour=True, under="test")
    make_folder("other", classes={"up": 5}, colour=True, under="train")
    said = run_fastcnn("eval", "run", other, cwd=tmp_path).stdout
    assert said.endswith(f"  (7 images of {other / 'test'})\n")
    picture = draw(tmp_path / "new.png", 2, 4711, colour=True, size=(70, 60))
    (record,) = json.loads(run_fastcnn("predict", "run", picture, "--json", cwd=tmp_path).stdout)
    assert record["class"] == "left"

    decoded = []
    decode = LazyImages.decode
    monkeypatch.setattr(LazyImages, "decode", lambda *given: decoded.append(given) or decode(*given))
    lazy = run_fastcnn("train", root, *settings, "--out", "lazy", "--memory-mb", "1", cwd=tmp_path)
    assert lazy.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert len(decoded) >= 6 * (84 + 12) + 24


def test_files_that_break_while_lazy_are_counted_and_named(make_folder, tmp_path):
    root = make_folder(classes={"up": 60, "down": 60}, under="train")
    make_folder(classes={"up": 24, "down": 4}, under="test")
    for path in sorted((root / "test/up").iterdir())[:23]:
        path.write_bytes(path.read_bytes()[:60])
    done = run_fastcnn(
        *("train", root, "--epochs", "1", "--steps-per-epoch", "1", "--image-size", "64"),
        *("--memory-mb", "1", "--out", "run"),
        cwd=tmp_path,
    )
    assert done.stdout.endswith("(5 images)\n")
    assert json.loads((tmp_path / "run/result.json").read_text())["test_images"] == 5
    lines = (tmp_path / "run/skipped.txt").read_text().splitlines()
    assert len(lines) == 23
    assert lines[0].startswith("test/up/000.png: ")
    shown = done.stderr.splitlines()
    assert shown[0] == "skipped 23 unreadable files:"
    assert [line.strip() for line in shown[1:-1]] == lines[:20]
    assert shown[-1] == "  and 3 more: all are in run/skipped.txt"
    again = run_fastcnn("eval", "run", cwd=tmp_path)
    assert "(5 test images of " in again.stdout
    assert again.stderr.count("\n") == 24


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want names to be text")
def test_class_names_that_are_not_text(make_folder, tmp_path):
    name = os.fsdecode(b"chat\xe9")
    root = make_folder(os.fsdecode(b"images\xe9"), classes={name: 6, "dog": 6})
    settings = ("--epochs", "1", "--steps-per-epoch", "1", "--image-size", "22", "--out", "run")
    run_process("train", root, *settings, cwd=tmp_path)
    told = run_process("predict", "run", root / name, "--top-k", "2", cwd=tmp_path).stdout
    assert told.count("chat\\udce9 ") == 6
    records = json.loads(run_fastcnn("predict", "run", root, "--json", cwd=tmp_path).stdout)
    assert {record["class"] for record in records} <= {name, "dog"}


@pytest.mark.parametrize(("batch_size", "chosen", "threads"), [(64, None, 1), (700, None, 3), (64, "3", 3)])
def test_small_steps_take_one_thread_unless_told(tmp_path, monkeypatch, batch_size, chosen, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        done = run_fastcnn(
            *("train", "digits", "--epochs", "1", "--steps-per-epoch", "1", "--batch-size", batch_size),
            cwd=tmp_path,
        )
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert f"on the CPU ({threads} thread{'s' if threads > 1 else ''})" in done.stdout


def test_a_missed_target_fails(tmp_path):
    done = run_fastcnn(
        *("train", "digits", "--epochs", "1", "--steps-per-epoch", "1", *FAST),
        *("--target-accuracy", "0.99", "--quiet"),
        cwd=tmp_path,
        status=1,
    )
    assert "below the target 99.00%" in done.stderr
    assert re.fullmatch(r"test loss .* \(360 images\)\n", done.stdout)


def run_until(process, text):
    """Read the lines of `process` up to one with `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}: {process.stderr.read()}")


def interrupt(folder, number):
    """Signal a run of four epochs when it has just done the first; gives its status and errors."""
    process = subprocess.Popen(
        command(*FOUR_EPOCHS, "--out", "broken"),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run_until(process, "epoch 1/4")
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_after_ctrl_c_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    """Interrupted wherever it is just then, be it between its steps or in validation."""
    run_fastcnn(*FOUR_EPOCHS, "--out", "straight", "--quiet", cwd=tmp_path)
    status, errors = interrupt(tmp_path, signal.SIGINT)
    assert status == 130, errors
    assert errors.startswith("interrupted in epoch ")
    assert "go on with: fastcnn train --resume broken" in errors
    assert not (tmp_path / "broken/result.json").exists()
    assert (tmp_path / "broken/curves.png").exists()

    resumed = run_fastcnn("train", "--resume", "broken", cwd=tmp_path)
    assert "resuming broken in epoch" in resumed.stdout
    for name in ("last.safetensors", "best.safetensors", "history.csv", "result.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    finished = run_fastcnn("train", "--resume", "broken", cwd=tmp_path, status=2)
    assert finished.stderr.startswith("fastcnn: broken is complete (4 of 4 epochs)")


def test_sigterm_saves_as_well(tmp_path):
    status, errors = interrupt(tmp_path, signal.SIGTERM)
    assert status == 143, errors
    state = Run.open(tmp_path / "broken").load_state()
    assert 1 <= state["epoch"] < 4
    assert f"interrupted in epoch {state['epoch'] + 1} of 4" in errors


def test_two_epochs_and_two_more_equal_four(tmp_path):
    arguments = ("train", "digits", *FAST, "--steps-per-epoch", "7", "--schedule", "constant", "--quiet")
    run_fastcnn(*arguments, "--epochs", "4", "--out", "four", cwd=tmp_path)
    run_fastcnn(*arguments, "--epochs", "2", "--out", "two", cwd=tmp_path)
    run_fastcnn("train", "--resume", "two", "--epochs", "4", "--quiet", cwd=tmp_path)
    for name in ("last.safetensors", "best.safetensors", "history.csv", "result.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "four" / name).read_bytes()


def test_an_extended_run_that_is_interrupted_goes_on(tmp_path, monkeypatch):
    arguments = ("train", "digits", *FAST, "--steps-per-epoch", "3", "--schedule", "constant", "--quiet")
    run_fastcnn(*arguments, "--epochs", "4", "--out", "straight", cwd=tmp_path)
    run_fastcnn(*arguments, "--epochs", "1", "--out", "run", cwd=tmp_path)
    on_batch = TrainingProgress.on_train_batch_end

    def strike(self, trainer):
        on_batch(self, trainer)
        if (trainer.epoch, trainer.step) == (2, 1):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "on_train_batch_end", strike)
        longer = ("train", "--resume", "run", "--epochs", "4", "--quiet")
        broken = run_fastcnn(*longer, cwd=tmp_path, status=130)
    assert broken.stderr.startswith("interrupted in epoch 3 of 4")
    assert not (tmp_path / "run/result.json").exists()
    run_fastcnn("train", "--resume", "run", "--quiet", cwd=tmp_path)
    for name in ("last.safetensors", "best.safetensors", "history.csv", "result.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_changed_folder_is_not_resumed(make_folder, tmp_path):
    root = make_folder()
    settings = ("--epochs", "1", "--image-size", "22", "--out", "run", "--quiet")
    run_fastcnn("train", root, *settings, cwd=tmp_path)
    (tmp_path / "run/result.json").unlink()
    draw(root / "up" / "new.png", 0, 1)
    done = run_fastcnn("train", "--resume", "run", cwd=tmp_path, status=2)
    assert "are not those that run began with" in done.stderr
    assert "name a folder" in run_fastcnn("eval", "run", cwd=tmp_path, status=2).stderr
    (root / "up" / "new.png").unlink()
    run_fastcnn("train", "--resume", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "give digits, a folder of images, or --resume RUN"),
        (["train", "nowhere"], "there is no folder nowhere"),
        (
            ["train", "digits", "--epochs", "0"],
            "argument --epochs: expected a whole number of at least 1, got '0'",
        ),
        (["train", "digits", "--lr", "nan"], "argument --lr: expected a number above 0, got 'nan'"),
        (["train", "digits", "--bogus"], "unrecognized arguments: --bogus"),
        (["train", "digits", "--precision", "int4"], "invalid choice: 'int4'"),
        (
            ["train", "digits", "--target-accuracy", "150"],
            "expected an accuracy such as 0.97 or 97, got '150'",
        ),
        (["train", "digits", "--device", "abacus"], "'abacus' is not a device"),
        (["train", "digits", "--graph", "--device", "cpu"], "needs a GPU, but the device is cpu"),
        (["train", "digits", "--image-size", "20"], "image_size must be at least 22"),
        (["train", "digits", "--model", "large_cnn"], "there is no model 'large_cnn'"),
        (["train", "digits", "--model", "nowhere:net"], "could not be imported"),
        (
            ["train", "digits", "--model", "torch.nn:Flatten"],
            "torch.nn:Flatten gave shape (1, 784) for one image, expected one number for each of 10 classes",
        ),
        (["train", "digits", "--model", "torch.nn:Conv2d"], "could not be built: TypeError"),
        (
            ["train", "digits", "--model", "torchvision.models:squeezenet1_1"],
            "does not take images of shape (1, 1, 28, 28)",
        ),
        (["train", "digits", "--out", "."], "already exists and is not an empty folder"),
        (["train", "--resume", "nowhere"], "there is no run folder nowhere"),
        (["train", "--resume", "plain"], "is not a run folder: it has no config.json"),
        (["train", "--resume", "run", "--lr", "1"], "--lr can't be changed on --resume"),
        (["train", "--resume", "run", "--epochs", "9"], "only go with --schedule constant"),
        (["train", "--resume", "run", "--out", "x"], "--out and --resume don't go together"),
        (["train", "--resume", "run"], "last.pt is damaged"),
        (["eval", "nowhere"], "there is no run folder nowhere"),
        (["eval", "plain"], "is not a run folder"),
        (["predict", "run"], "the following arguments are required: FILE"),
        (["predict", "run", "nothing.png"], "there is no file or folder nothing.png"),
        (["predict", "run", "plain"], "there are no image files in plain"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(trained, tmp_path, arguments, said):
    (tmp_path / "plain").mkdir()
    (tmp_path / "run").mkdir()
    config = (trained[0] / "runs/digits-1/config.json").read_bytes()
    (tmp_path / "run/config.json").write_bytes(config)
    (tmp_path / "run/last.pt").write_bytes(b"PK\x03\x04 no more")
    done = run_fastcnn(*arguments, cwd=tmp_path, status=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fastcnn")
    assert not done.stdout


def test_a_diverging_run_stops_with_a_hint(tmp_path):
    done = run_fastcnn(
        *("train", "digits", *FAST, "--optimizer", "sgd", "--lr", "1e30", "--epochs", "2"),
        cwd=tmp_path,
        status=2,
    )
    assert "training diverged; try a lower --lr" in done.stderr


def test_a_users_own_model_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, 3), nn.Flatten(), nn.Linear(8 * 49, num_classes))\n"
    )
    run_fastcnn(
        *("train", "digits", "--model", "my_models:net", *FAST, "--epochs", "1"),
        *("--out", "run", "--quiet"),
        cwd=tmp_path,
    )
    run_fastcnn("eval", "run", cwd=tmp_path)


@pytest.mark.parametrize(
    ("module", "distribution"),
    [
        ("PIL", "Pillow"),
        ("rich", "rich"),
        ("safetensors", "safetensors"),
        ("sklearn", "scikit-learn"),
        ("matplotlib", "matplotlib"),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, module, distribution):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest)
    )
    done = run_fastcnn("train", "digits", cwd=tmp_path, status=2)
    assert done.stderr == (
        f"fastcnn: {distribution} is needed here and is not installed: pip install 'fastcnn[train]'\n"
    )
    assert not os.listdir(tmp_path)


def test_a_package_missed_while_at_work_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn .* pip install 'fastcnn\[train\]'"):
        load("digits")


def test_info_and_the_package_import_nothing_heavy(tmp_path):
    program = (
        "import sys, fastcnn, fastcnn.data, fastcnn.training, fastcnn.models\n"
        "from fastcnn.cli import main\n"
        "status = main(['info'])\n"
        "heavy = {'matplotlib', 'sklearn', 'PIL', 'rich', 'safetensors', 'torchvision'}\n"
        "print('heavy:', sorted(heavy & sys.modules.keys()))\n"
        "sys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_colours_forced_on_what_is_no_terminal_bring_no_live_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    done = run_fastcnn("train", "digits", "--epochs", "1", "--steps-per-epoch", "2", *FAST, cwd=tmp_path)
    assert "\x1b" not in done.stdout
    assert "epoch 1/1  loss" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pipes that break are POSIX's")
def test_a_reader_that_leaves_is_no_error(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            command("info"), cwd=tmp_path, env=environment(), stdout=theirs, stderr=subprocess.PIPE
        )
    finally:
        os.close(theirs)
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_a_terminal_shows_a_live_bar(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("train", "digits", "--epochs", "2", "--steps-per-epoch", "5", *FAST),
        cwd=tmp_path,
        env={**environment(), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    output = b""
    while True:
        readable, _, _ = select.select([ours], [], [], 120)
        assert readable, "nothing came for two minutes"
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        output += piece
    os.close(ours)
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    assert re.search(r"epoch 1/2 [━╸╺ ]+ loss \d\.\d{4}  accuracy [\d.]+% [\d,]+ images/s ETA \d+:\d\d", text)
    assert re.search(r"epoch 2/2  loss .*  val_accuracy .*", text)
    assert "test accuracy" in text.splitlines()[-1]


@pytest.mark.slow
def test_the_default_run_reaches_its_accuracy(tmp_path):
    """At least 97 % of the test digits, by the recipe as it stands."""
    done = run_process("train", "digits", "--target-accuracy", "0.97", cwd=tmp_path)
    assert "test accuracy" in done.stdout
