"""Kernels' names as people read them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence


def readable(names: Sequence[str]) -> list[str]:
    """Mangled names as "generic::wgrad_kernel<float, 4>": without fastcnn's namespace and the parameters.

    As they are where c++filt (binutils) is missing.
    """
    if not names or shutil.which("c++filt") is None:
        return list(names)
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [_short(name) for name in text.stdout.splitlines()]


def _short(name: str) -> str:
    name = name.replace("(anonymous namespace)::", "").replace("fastcnn::", "").removeprefix("void ")
    return re.sub(r"\([^()]*\)$", "", name)
