"""What is measured: rows of the suites, each in some operations, dtypes and layouts. Touches no device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastcnn.bench.suites import ConvRow, OtherRow, PoolRow, Row, SuiteError, suites

#: The names users give to a dtype -> torch's name, and whether float32 products may use TF32.
DTYPES = {
    "bf16": ("bfloat16", False),
    "fp16": ("float16", False),
    "fp32": ("float32", False),
    "tf32": ("float32", True),
}
_DTYPE_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
LAYOUTS = {"channels_last": "channels_last", "nhwc": "channels_last", "contiguous": "contiguous"}
LAYOUTS["nchw"] = "contiguous"

_CONV_PASSES = {
    "fprop": "conv2d_fprop",
    "dgrad": "conv2d_dgrad",
    "wgrad": "conv2d_wgrad",
    "forward_backward": "conv2d_forward_backward",
    "act": "conv2d_act",
    "act_pool": "conv2d_act_max_pool2d",
}
_POOL_PASSES = {"fprop": "{}", "backward": "{}_backward", "forward_backward": "{}_forward_backward"}
_MODEL_PASSES = {
    "inference": "model_inference",
    "training": "model_training",
    "inference_fused": "model_inference_fused",
    "inference_compiled": "model_inference_compiled",
    "training_compiled": "model_training_compiled",
}
PASSES = tuple(dict.fromkeys((*_CONV_PASSES, *_POOL_PASSES, *_MODEL_PASSES)))


@dataclass(frozen=True)
class Case:
    """One operation on one row; `dtype` is torch's name, `layout` "channels_last" or "contiguous"."""

    row: Row
    op: str
    dtype: str
    layout: str = "channels_last"
    tf32: bool = False

    @property
    def id(self) -> str:
        """Unique: "resnet50_224/layer1.0.conv2 conv2d_wgrad bfloat16 channels_last"."""
        row = self.row
        batch = f" n{row.batch}" if isinstance(row, OtherRow) and row.batch else ""
        words = (f"{row.suite}/{row.layer}{batch}", self.op, self.dtype, self.layout)
        return " ".join((*words, "tf32") if self.tf32 else words)

    @property
    def short_dtype(self) -> str:
        """ "bf16", "fp16", "fp32" or "tf32"."""
        return "tf32" if self.tf32 else _DTYPE_NAMES[self.dtype]


def operations(row: Row, passes: Sequence[str] = ()) -> list[str]:
    """The operations of a row; `passes` names some of them, none stands for those that a network needs."""
    if isinstance(row, ConvRow):
        ops = {name: op for name, op in _CONV_PASSES.items() if name in passes or _wanted(name, row)}
    elif isinstance(row, PoolRow):
        ops = {name: op.format(row.op) for name, op in _POOL_PASSES.items()}
    elif row.suite == "models":
        ops = dict(_MODEL_PASSES)
    else:
        ops = {row.suite: row.suite}
    return [op for name, op in ops.items() if not passes or name in passes]


def _wanted(name: str, row: ConvRow) -> bool:
    """Whether a network asks for this pass of the layer."""
    if name == "dgrad":
        return not row.first_layer
    return name != "act_pool" or row.suite == "small_cnn_28"


def expand(
    rows: Iterable[Row],
    *,
    passes: Sequence[str] = (),
    dtypes: Sequence[str] = ("bf16",),
    layouts: Sequence[str] = ("channels_last",),
) -> list[Case]:
    """Every wanted operation of the rows in every wanted dtype and layout.

    Args:
        passes: some of `PASSES`; none stands for all that a row has (but no data gradient of images).
        dtypes: some of `DTYPES`.
        layouts: some of `LAYOUTS`.

    Raises:
        SuiteError: an unknown name; the message lists those there are.
    """
    for kind, given, known in (
        ("pass", passes, PASSES),
        ("dtype", dtypes, DTYPES),
        ("layout", layouts, LAYOUTS),
    ):
        for name in given:
            if name not in known:
                raise SuiteError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
    cases: dict[Case, None] = {}
    for row in rows:
        for layout in layouts:
            for name in dtypes:
                dtype, tf32 = DTYPES[name]
                for op in operations(row, passes):
                    # Pools have no products for TF32 to round.
                    tf32_matters = tf32 and not isinstance(row, PoolRow)
                    case = Case(row, op, dtype, LAYOUTS[layout], tf32_matters)
                    if row.suite == "call_overhead":  # a host time: no dtype or layout changes it
                        case = Case(row, op, "float32")
                    cases[case] = None
    return list(cases)


# Layers of every class: dense 3x3 and 1x1 from large to small planes, the first layers, depthwise, the small
# CNN's. What names them comes in the order in which a budget is best spent.
_QUICK_CONVS = {
    "resnet50_224": (
        ("layer1.0.conv2", ("fprop", "dgrad", "wgrad", "act")),
        ("layer3.1.conv2", ("fprop", "dgrad", "wgrad")),
        ("layer1.0.conv3", ("fprop", "dgrad", "wgrad")),
        ("layer4.0.conv3", ("fprop", "wgrad")),
        ("layer2.0.conv2", ("fprop", "dgrad", "wgrad")),
        ("conv1", ("fprop", "wgrad")),
    ),
    "mobilenet_v2_224": (
        ("features.2.conv.1.0", ("fprop", "dgrad", "wgrad")),
        ("features.4.conv.1.0", ("fprop",)),
    ),
    "efficientnet_b0_224": (("features.5.1.block.1.0", ("fprop", "dgrad", "wgrad")),),
    "convnext_t_224": (("features.1.0.block.0", ("fprop", "dgrad", "wgrad")),),
    "resnext50_224": (("layer2.1.conv2", ("fprop", "dgrad", "wgrad")),),
    "small_cnn_28": (
        ("conv1_n128", ("fprop", "wgrad", "act_pool")),
        ("conv2_n128", ("fprop", "dgrad", "wgrad", "act_pool")),
        ("conv2_n1", ("fprop",)),
    ),
    "vgg16_224": (("features.2", ("fprop", "wgrad")),),
}
_QUICK_POOLS = {
    "pool_resnet50": ("maxpool", "avgpool"),
    "pool_smallcnn": ("pool1_n128",),
    "pool_probe": ("poolformer_k3s1",),
}


def quick() -> list[Case]:
    """A few layers of every class: about five minutes on an H200 (an estimate, a budget holds it to that)."""
    known = suites()
    cases: list[Case] = []

    def add(suite: str, layer: str, passes: Sequence[str], dtypes: Sequence[str] = ("bf16",)) -> None:
        rows = [row for row in known[suite] if row.layer == layer]
        if not rows:
            raise SuiteError(f"the quick selection names {suite}/{layer}, which there is not")
        cases.extend(expand(rows, passes=passes, dtypes=dtypes))

    for suite, layers in _QUICK_CONVS.items():
        for layer, passes in layers:
            add(suite, layer, passes)
    add("resnet50_224", "layer1.0.conv2", ("fprop", "wgrad"), ("tf32", "fp32"))
    cases.extend(
        expand(
            [row for row in known["resnet50_224"] if row.layer == "layer1.0.conv2"],
            passes=["fprop"],
            layouts=["nchw"],
        )
    )
    for suite, layers in _QUICK_POOLS.items():
        for layer in layers:
            add(suite, layer, ("fprop", "backward"))
    cases.extend(expand(known["call_overhead"]))
    cases.extend(expand(known["small_cnn_step"][:1]))
    add("models", "resnet50", ("inference", "training"))
    return cases
