"""tools/sass_report.py on disassemblies as cuobjdump writes them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "sass_report.py"

LISTING = """
Fatbin elf code:
================
arch = sm_90a

		Function : _ZN7fastcnn9wide_copyIfLi4EEEvPf
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
                                                                       /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;    /* 0x00009b0000047ab9 */
        /*0020*/             @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;         /* 0x00009b0000047ab9 */
        /*11230*/                  STG.E.128 [R2.64], R4 ;             /* 0x00009b0000047ab9 */
        /*11240*/                  STG.E.128 [R2.64+0x10], R4 ;        /* 0x00009b0000047ab9 */
		Function : _ZN7fastcnn9wide_copyIfLi1EEEvPf
        /*0000*/                   LDG.E.CONSTANT R4, [R2.64] ;        /* 0x00009b0000047ab9 */
"""


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module: it finds its neighbours as a script does, in its own folder."""
    monkeypatch.syspath_prepend(str(TOOL.parent))
    import sass_report

    return sass_report


@pytest.fixture
def kernels(tool):
    return tool.parse(LISTING.splitlines())


def test_kernels_and_their_instructions(kernels):
    wide, narrow = kernels
    assert (wide.name, narrow.name) == ("wide_copy<float, 4>", "wide_copy<float, 1>")
    assert wide.opcodes == {"LDC": 1, "LDG.E.128.CONSTANT": 1, "UIADD3": 1, "STG.E.128": 2}
    assert wide.count(r"LDG\.E\.128") == 1
    assert wide.count("STG") == 2
    assert narrow.count(r"LDG\.E\.128") == 0


def test_claims_hold_or_are_named(tool, kernels):
    loads = {r"LDG\.E\.128": "it copies 16 bytes"}
    assert tool.complaints(kernels, [tool.Claim("^wide_copy<float, 4>", loads)]) == []
    (lacking,) = tool.complaints(kernels, [tool.Claim("^wide_copy<", loads)])
    assert lacking == r"wide_copy<float, 1> has no LDG\.E\.128: it copies 16 bytes"
    (idle,) = tool.complaints(kernels, [tool.Claim("^renamed_copy<", loads)])
    assert "no kernel is called ^renamed_copy<" in idle


def test_local_memory_is_refused_without_a_claim(tool):
    listing = LISTING.replace("LDC R1", "STL.64 [R1]")
    (found,) = tool.complaints(tool.parse(listing.splitlines()), [])
    assert found.startswith("wide_copy<float, 4> has 1 x LDL|STL")


def run(tmp_path, listing, binary, status=0):
    """The tool with a cuobjdump that tells what it was given and prints the listing."""
    disassembler = tmp_path / "cuobjdump"
    (tmp_path / "listing").write_text(listing)
    disassembler.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/given\ncat {tmp_path}/listing\nexit {status}\n'
    )
    disassembler.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, str(TOOL), str(binary), "--table"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_wheel_is_read_by_its_library(tmp_path):
    wheel = tmp_path / "fastcnn.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fastcnn/_C.abi3.so", "code")
        file.writestr("fastcnn/__init__.py", "")
    done = run(tmp_path, LISTING, wheel)
    assert (tmp_path / "given").read_text().split()[:3] == ["-sass", "-arch", "sm_90a"]
    assert (tmp_path / "given").read_text().strip().endswith("fastcnn/_C.abi3.so")
    assert "wide_copy<float, 4>: 1 LDG.E.128.CONSTANT, 2 STG.E.128" in done.stdout
    assert done.returncode == 1  # the library's own claims are about other kernels
    assert "the claim is about none" in done.stderr


def test_nothing_to_read_is_no_success(tmp_path):
    done = run(tmp_path, "arch = sm_80\n", tmp_path / "fastcnn.so")
    assert done.returncode == 2
    assert "has no code for sm_90a" in done.stderr
    assert run(tmp_path, LISTING, tmp_path / "fastcnn.so", status=1).returncode not in (0, 2)
