"""What the sources claim of the kernels' machine code; `sass_report.py` holds the code to it."""

from __future__ import annotations

from dataclasses import dataclass

HALF = r"(?:__half|__nv_bfloat16)"
WIDE_LOAD = r"LDG\.E\.128"
WIDE_STORE = r"STG\.E\.128"
WIDE_COPY = r"LDGSTS\..*128"  # cp.async of 16 bytes, past L1
TENSOR_CORES = r"HMMA\.16816\.F32"

#: Instructions that no kernel may have, and why.
FORBIDDEN = {r"LDL|STL": "an array went to local memory"}


@dataclass(frozen=True)
class Claim:
    """`kernels`: a regular expression that finds the readable names; `has`: instruction -> what it is for."""

    kernels: str
    has: dict[str, str]


CLAIMS = (
    Claim(
        rf"^generic::image_kernel<({HALF}, .*> ?, 8|float, .*> ?, 4),", {WIDE_LOAD: "operands by 16 bytes"}
    ),
    Claim(r"^generic::image_kernel<float, ", {r"LDS\.128": "tiles"}),
    # The 16 x 16 tile's threads end with one result each.
    Claim(r"^generic::image_kernel<float, (?!generic::SlicedTile<16)", {WIDE_STORE: "four results a store"}),
    Claim(
        rf"^generic::wgrad_kernel<({HALF}, .*> ?, 8|float, .*> ?, 4),", {WIDE_LOAD: "operands by 16 bytes"}
    ),
    Claim(rf"^depthwise_[fd]\w+<({HALF}, 8|float, 4)>", {WIDE_LOAD: "a vector of x", WIDE_STORE: "and of y"}),
    Claim(r"^depthwise_strip<", {WIDE_COPY: "rows"}),
    Claim(r"^depthwise_tile<", {WIDE_LOAD: "the run of planes", WIDE_STORE: "results"}),
    Claim(r"^depthwise_large<", {r"LDS\.128": "four sources or weights", r"STS\.128": "zeros beside them"}),
    Claim(
        r"^large_wgrad::depthwise_wgrad_large<",
        {r"LDS\.128": "four pixels of x or dy", r"STS\.128": "zeros beside them"},
    ),
    Claim(r"^grouped::image_kernel<", {WIDE_COPY: "the box of pixels"}),
    Claim(r"^sweep::sweep_kernel<", {WIDE_COPY: "rows and planes of x and dy"}),
    Claim(
        r"^grouped::image_mma_kernel<",
        {WIDE_COPY: "the box of pixels", TENSOR_CORES: "products", WIDE_STORE: "results"},
    ),
    Claim(r"^grouped::wgrad_kernel<", {WIDE_COPY: "both boxes of pixels"}),
    Claim(
        r"^grouped::wgrad_mma_kernel<",
        {WIDE_COPY: "both boxes of pixels", TENSOR_CORES: "products", r"LDSM\.16\.MT88": "their operands"},
    ),
    Claim(r"^thin::output_box_kernel<", {WIDE_COPY: "the box of pixels"}),
    Claim(
        r"^thin::output_rows_kernel<",
        {
            WIDE_COPY: "the box of pixels and the weights",
            TENSOR_CORES: "products",
            r"LDSM\.16\.M88": "their operands",
        },
    ),
    Claim(
        r"^pointwise::mma_kernel<",
        {
            WIDE_COPY: "both operands",
            TENSOR_CORES: "products",
            r"LDSM\.16\.M": "their operands",
            WIDE_STORE: "results",
        },
    ),
    Claim(rf"^bias_grad<({HALF}, (1, 8|8, 1)|float, (1, 4|4, 1))>", {WIDE_LOAD: "the gradient"}),
    Claim(rf"^(max|average)_[fb]prop<({HALF}, 8|float, 4),", {WIDE_LOAD: "windows", WIDE_STORE: "results"}),
    Claim(r"^strip_[fb]prop<", {WIDE_COPY: "rows", r"LDS\.128": "rows again", WIDE_STORE: "results"}),
    Claim(r"^global_nhwc_fprop<", {WIDE_LOAD: "vectors of channels", WIDE_STORE: "results"}),
    Claim(r"^global_nchw_fprop<", {WIDE_LOAD: "a plane's whole vectors"}),
    Claim(r"^global_nchw_staged_fprop<", {WIDE_COPY: "the run of planes"}),
    Claim(r"^global_(nhwc|nchw)_bprop<", {WIDE_STORE: "results"}),
    Claim(r"^window_[fb]prop<", {WIDE_LOAD: "windows", WIDE_STORE: "results"}),
    Claim(r"^plane_max_[fb]prop<", {WIDE_COPY: "planes", WIDE_STORE: "results"}),
    Claim(
        r"^(strip|window)_fprop<__half, (true|\(bool\)1), ",
        {r"HSET2": "comparisons of two channels"},
    ),
    Claim(r"^tile_[fb]prop<", {WIDE_COPY: "the run of planes", WIDE_STORE: "results"}),
)
