"""The flags. Training flags have no defaults here: those of `TrainingConfig` stand, and a resumed run's
do."""

import argparse
import math
from typing import Any, NoReturn

from .._version import __version__

MODELS_HELP = "small_cnn, or module:function for your own (called with num_classes, in_channels, image_size)"

TRUST = (
    "A run's own model (module:function) is imported from where its config.json says: open only run folders "
    "that you trust."
)


class Parser(argparse.ArgumentParser):
    """Complains in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (try: {self.prog} --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = Parser(prog="fastcnn", description="Train and use image classifiers on fastcnn's layers.")
    parser.add_argument("--version", action="version", version=f"fastcnn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_train(commands)
    _add_eval(commands)
    _add_predict(commands)
    _add_bench(commands)
    commands.add_parser("info", help="versions, the compiled library, the GPU, and what falls back")
    return parser


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a classifier",
        description="Train a classifier and leave a run folder with its weights, history and curves.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "data",
        nargs="?",
        default=None,
        metavar="DATA",
        help="digits (the handwritten digits of scikit-learn), or a folder with one sub-folder of images per "
        "class, or with train/, val/ and test/ above them",
    )
    parser.add_argument("--resume", default=None, metavar="RUN", help="go on with an interrupted run")
    group = parser.add_argument_group("model and images")
    group.add_argument("--model", metavar="NAME", help=f"{MODELS_HELP}; default small_cnn")
    group.add_argument("--image-size", type=positive_int, metavar="N", help="bring images to NxN; default 28")
    group.add_argument(
        "--channels", type=int, choices=(1, 3), help="grey or colour; default: grey if all images are"
    )
    group.add_argument(
        "--memory-mb",
        type=positive_int,
        metavar="N",
        help="decode at once and keep sets of at most N MiB, larger ones batch by batch; default 2048",
    )
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive_int, metavar="N", help="default 30")
    group.add_argument(
        "--steps-per-epoch", type=positive_int, metavar="N", help="default: one pass over the images"
    )
    group.add_argument("--batch-size", type=positive_int, metavar="N", help="default 64")
    group.add_argument(
        "--lr", type=positive_float, metavar="X", help="(highest) learning rate; default 0.003"
    )
    group.add_argument("--optimizer", choices=("adamw", "adam", "sgd"), help="default adamw")
    group.add_argument("--schedule", choices=("one_cycle", "constant"), help="default one_cycle")
    group.add_argument("--weight-decay", type=not_negative, metavar="X", help="default 0.01")
    group.add_argument("--label-smoothing", type=fraction, metavar="X", help="default 0.1")
    group.add_argument(
        "--clip-norm", type=positive_float, metavar="X", help="largest gradient norm; default: none"
    )
    group.add_argument(
        "--augment",
        choices=("mild", "none"),
        help="mild (the default) turns, shifts and zooms a little",
    )
    group.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="default fp32")
    group.add_argument("--seed", type=seed, metavar="N", help="of splits, weights and shuffling; default 0")
    group = parser.add_argument_group("this run")
    group.add_argument(
        "--device", default=None, help="cpu, cuda or cuda:N; default: a GPU where there is one"
    )
    group.add_argument(
        "--graph",
        action="store_true",
        default=False,
        help="on a GPU, run a step's forward and backward pass as one CUDA graph",
    )
    group.add_argument("--out", default=None, metavar="RUN", help="the run folder; default runs/<name>-<n>")
    group.add_argument(
        "--target-accuracy",
        type=accuracy,
        default=None,
        metavar="X",
        help="exit with status 1 if the test accuracy is below X (0.97 or 97)",
    )
    group.add_argument("--quiet", action="store_true", default=False, help="print the result only")


def _add_eval(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="loss and accuracy of a trained run",
        description="Loss and accuracy of a trained run, on its own test images or on others. " + TRUST,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="a folder of other images with the same classes, all of which are used (those of its test/ or "
        "else val/ where it has splits); default, and where it is the run's own folder: the run's test "
        "images",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    _add_inference(parser)


def _add_predict(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="class and probability of images",
        description="Class and probability of each image, by a trained run. " + TRUST,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("files", nargs="+", metavar="FILE", help="image files, or folders of them")
    parser.add_argument("--top-k", type=positive_int, default=1, metavar="K", help="the K likeliest classes")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per file")
    _add_inference(parser)


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="time the kernels beside cuDNN, ATen and torch.compile",
        description="Time fastcnn's kernels on a GPU, side by side with cuDNN (channels_last and NCHW), ATen "
        "and torch.compile in one run. Every result is checked before it is timed; ratios are against the "
        "fastest of torch's ways. Nothing named: a few layers of every class, for about five minutes.",
    )
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="resnet50_224, mobilenet_v2_224, pool_resnet50, ... or main, convs, pools, all; again for more",
    )
    group.add_argument(
        "--conv", nargs=2, metavar=("NxCxHxW", "KxRxS"), help="one convolution: 64x128x56x56 128x3x3"
    )
    group.add_argument(
        "--pool",
        nargs=3,
        metavar=("KIND", "NxCxHxW", "WINDOW"),
        help="one pool: max 128x64x112x112 3x3; KIND is max, avg, adaptive_max or adaptive_avg",
    )
    group.add_argument(
        "--stride", metavar="N|NxM", help="of --conv (default 1) or --pool (default: its window)"
    )
    group.add_argument("--padding", metavar="N|NxM", help="default 0")
    group.add_argument("--dilation", metavar="N|NxM", help="default 1")
    group.add_argument("--groups", type=positive_int, metavar="N", help="of --conv; default 1")
    group.add_argument(
        "--model",
        metavar="NAME",
        help="a whole model through fastcnn.convert: small_cnn, a name of torchvision's or timm's, or "
        "module:function (its code is run)",
    )
    group.add_argument("--batch", type=positive_int, metavar="N", help="of --model; default 128")
    group.add_argument("--train", action="store_true", help="of --model: a training step, not inference")
    group.add_argument(
        "--fuse",
        action="store_true",
        help="of --model: inference with BatchNorms, additions and activations fused",
    )
    group.add_argument("--quick", action="store_true", help="the selection that is taken if nothing is named")
    group = parser.add_argument_group("how")
    group.add_argument(
        "--dtype",
        action="append",
        metavar="NAME",
        help="bf16 (default), fp16, fp32, or tf32 (float32 tensors, TF32 products); again for more",
    )
    group.add_argument(
        "--layout", action="append", metavar="NAME", help="channels_last (default) or nchw; again for more"
    )
    group.add_argument(
        "--pass",
        dest="passes",
        action="append",
        metavar="NAME",
        help="fprop, dgrad, wgrad, forward_backward, act, backward (pools), inference, training, ...; again "
        "for more; default: all that a row has",
    )
    group.add_argument(
        "--seconds",
        type=positive_float,
        metavar="X",
        help="begin no case after this long; 300 if nothing is named",
    )
    group = parser.add_argument_group("results")
    group.add_argument("--json", metavar="FILE", help="write a record, every sample in it, as the run goes")
    group.add_argument("--csv", metavar="FILE", help="write one line per case")
    group.add_argument("--plot", metavar="FILE.png", help="draw the ratios as sorted bars")
    group.add_argument("--list", action="store_true", help="print what would be measured; needs no GPU")


def _add_inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=("best", "last"), default="best", help="default best")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU where there is one")
    parser.add_argument("--batch-size", type=positive_int, default=256, metavar="N", help="default 256")


def _number(text: str, kind: type, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """A whole number from 1."""
    value = _number(text, int, "a whole number of at least 1")
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def seed(text: str) -> int:
    """A whole number that NumPy and torch take as a seed."""
    value = _number(text, int, "a whole number from 0 to 4294967295")
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 4294967295, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """A number above 0."""
    value = _number(text, float, "a number above 0")
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def not_negative(text: str) -> float:
    """A number from 0."""
    value = _number(text, float, "a number of at least 0")
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def fraction(text: str) -> float:
    """A number from 0 to below 1."""
    value = _number(text, float, "a number from 0 to below 1")
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text!r}")
    return value


def accuracy(text: str) -> float:
    """A share, or a percentage where it is above 1."""
    value = _number(text, float, "an accuracy such as 0.97 or 97")
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected an accuracy such as 0.97 or 97, got {text!r}")
    return value / 100 if value > 1 else value
