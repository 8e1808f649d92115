"""build_support.cuda: the toolkit behind wrappers, the architecture list, jobs by memory, missing nvcc."""

import os
import stat
from pathlib import Path

import pytest

from build_support import cuda

DRYRUN = "#$ _SPACE_= \n#$ _HERE_={here}\n#$ TOP={here}/..\n#$ PATH=/somewhere\n"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def toolkit(tmp_path):
    """A folder as nvcc's, whose nvcc tells where it lives as the real one does."""
    home = tmp_path / "cuda-99.1"
    dryrun = DRYRUN.format(here=home / "bin")
    script(
        home / "bin" / "nvcc",
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "Cuda compilation tools, release 99.1, V99.1.7"; exit; fi\n'
        f"cat >&2 <<'EOF'\n{dryrun}EOF\n",
    )
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    return home


def path_with(folder: Path) -> dict:
    return {"PATH": f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"}


def test_the_variable_comes_first(toolkit, tmp_path):
    other = script(tmp_path / "other" / "bin" / "nvcc", "#!/bin/sh\n").parent.parent
    environ = {"CUDA_HOME": str(other), **path_with(toolkit / "bin")}
    assert cuda.find_cuda_home(environ) == other


def test_a_variable_without_nvcc_is_passed_over(toolkit):
    environ = {"CUDA_HOME": "/nowhere", "CUDA_PATH": str(toolkit), "PATH": ""}
    assert cuda.find_cuda_home(environ) == toolkit


def test_nvcc_on_path(toolkit):
    assert cuda.find_cuda_home(path_with(toolkit / "bin")) == toolkit


def test_nvcc_behind_a_script(toolkit, tmp_path):
    wrapper = script(tmp_path / "wrap" / "nvcc", f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    assert cuda.find_cuda_home(path_with(wrapper.parent)) == toolkit


def test_nvcc_behind_a_script_in_a_path_with_spaces(toolkit, tmp_path):
    wrapper = script(tmp_path / "my tools" / "nvcc", f'#!/bin/sh\nexec "{toolkit}/bin/nvcc" "$@"\n')
    assert cuda.find_cuda_home(path_with(wrapper.parent)) == toolkit


def test_nvcc_behind_a_link(toolkit, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    assert cuda.find_cuda_home(path_with(tmp_path / "links")) == toolkit


def test_a_link_to_an_nvcc_that_tells_nothing(toolkit, tmp_path):
    script(toolkit / "bin" / "nvcc", "#!/bin/sh\nexit 1\n")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    assert cuda.find_cuda_home(path_with(tmp_path / "links")) == toolkit


def test_a_script_that_leads_nowhere_is_no_toolkit(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "USUAL_HOME", tmp_path / "absent")
    wrapper = script(tmp_path / "wrap" / "nvcc", "#!/bin/sh\necho no compiler here >&2\nexit 1\n")
    assert cuda.find_cuda_home(path_with(wrapper.parent)) is None


def test_version(toolkit):
    assert cuda.nvcc_version(toolkit) == "99.1"


def test_an_unreadable_version_says_what_was_read(toolkit):
    script(toolkit / "bin" / "nvcc", "#!/bin/sh\necho mumble\n")
    with pytest.raises(RuntimeError, match="mumble"):
        cuda.nvcc_version(toolkit)


@pytest.mark.parametrize("folder", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_static_runtime_is_found_where_this_kind_of_toolkit_has_it(toolkit, folder):
    (toolkit / folder).mkdir(parents=True)
    (toolkit / folder / "libcudart_static.a").touch()
    assert cuda.library_folder(toolkit) == toolkit / folder


def test_a_missing_static_runtime_names_the_folders(toolkit):
    with pytest.raises(RuntimeError, match=r"libcudart_static\.a is in none of .*lib64"):
        cuda.library_folder(toolkit)


@pytest.mark.parametrize(
    ("asked", "built"),
    [
        (None, ["8.0+PTX", "9.0a"]),
        ("", ["8.0+PTX", "9.0a"]),
        ("8.6", ["8.6"]),
        ("9.0", ["9.0a"]),
        ("9.0a", ["9.0a"]),
        ("Hopper", ["9.0a"]),
        ("8.0 9.0", ["8.0", "9.0a"]),
        ("8.0;9.0;9.0a", ["8.0", "9.0a"]),
        ("8.0,8.9+PTX", ["8.0", "8.9+PTX"]),
        ("9.0+PTX", ["9.0a", "8.0+PTX"]),
        ("8.6+PTX;9.0+PTX", ["8.6+PTX", "9.0a"]),
        ("Ampere", ["8.0", "8.6+PTX"]),
    ],
)
def test_architectures(asked, built):
    environ = {} if asked is None else {"TORCH_CUDA_ARCH_LIST": asked}
    assert cuda.architectures(environ) == built


@pytest.mark.parametrize(
    ("cpus", "gib", "jobs"), [(2, 24, 2), (64, 24, 6), (64, 256, 64), (8, 10, 2), (8, 5, 1), (8, 1, 1)]
)
def test_jobs_are_bounded_by_memory(cpus, gib, jobs):
    assert cuda.job_limit(cpus, gib << 30) == jobs


def test_default_jobs_is_at_least_one_and_at_most_the_cores():
    assert 1 <= cuda.default_jobs() <= os.cpu_count()


@pytest.fixture
def no_toolkit(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "USUAL_HOME", tmp_path / "absent")
    return {"PATH": str(tmp_path)}


def test_missing_nvcc_is_one_sentence_with_the_remedy(no_toolkit):
    home, sentence = cuda.toolkit_to_build_with(no_toolkit)
    assert home is None
    assert "\n" not in sentence
    assert "no nvcc was found" in sentence
    assert "set CUDA_HOME" in sentence


def test_missing_nvcc_is_an_error_when_the_build_is_required(no_toolkit):
    with pytest.raises(RuntimeError, match="FASTCNN_BUILD_CUDA=1, but no CUDA toolkit"):
        cuda.toolkit_to_build_with({**no_toolkit, "FASTCNN_BUILD_CUDA": "1"})


def test_the_build_can_be_skipped(toolkit):
    home, sentence = cuda.toolkit_to_build_with({"CUDA_HOME": str(toolkit), "FASTCNN_BUILD_CUDA": "0"})
    assert home is None
    assert "FASTCNN_BUILD_CUDA=0" in sentence


@pytest.mark.parametrize("wish", ["", "1"])
def test_the_build_happens_where_nvcc_is(toolkit, wish):
    environ = {"CUDA_HOME": str(toolkit), "FASTCNN_BUILD_CUDA": wish}
    assert cuda.toolkit_to_build_with(environ) == (toolkit, "")


def test_another_wish_is_refused(toolkit):
    with pytest.raises(ValueError, match="FASTCNN_BUILD_CUDA is 'yes': expected 0"):
        cuda.toolkit_to_build_with({"CUDA_HOME": str(toolkit), "FASTCNN_BUILD_CUDA": "yes"})
