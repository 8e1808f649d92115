"""`python -m tests.emulator`: builds the emulated operator library and prints its path."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .conformance import prepare
from .library import Variant, build, build_program


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator", description=__doc__)
    parser.add_argument("--asan", action="store_true", help="with AddressSanitizer and UBSan")
    parser.add_argument("--rebuild", action="store_true", help="compile everything anew")
    parser.add_argument(
        "--program",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="link these sources, one with main(), with the emulated device, and run the program",
    )
    parser.add_argument(
        "--conformance",
        action="store_true",
        help="prepare the comparison with a GPU (needs nvcc) and print its folder",
    )
    arguments = parser.parse_args()
    variant = Variant.ASAN if arguments.asan else Variant.RELEASE
    if arguments.program:
        program = build_program(arguments.program, variant)
        os.execv(program, [str(program)])
    if arguments.conformance:
        print(prepare())
        return
    print(build(variant, rebuild=arguments.rebuild))


if __name__ == "__main__":
    main()
