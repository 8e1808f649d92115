"""setuptools' build backend, which asks for torch and ninja only where the CUDA library will be built.

A machine without nvcc so installs without a second download of torch for the isolated build.
"""

from __future__ import annotations

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 (the hooks that stay as they are)

from build_support.cuda import toolkit_to_build_with

CUDA_BUILD_REQUIRES = ["torch>=2.11", "ninja"]


def _cuda_requires() -> list[str]:
    home, _ = toolkit_to_build_with()
    return CUDA_BUILD_REQUIRES if home else []


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _cuda_requires()


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _cuda_requires()
