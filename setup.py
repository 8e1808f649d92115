"""Builds fastcnn/_C.abi3.so with nvcc where a CUDA toolkit is found. The rest stands in pyproject.toml."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from build_support import build_info, cuda  # noqa: E402

# These build nothing, and an isolated build runs them before torch is there.
METADATA_COMMANDS = {"dist_info", "egg_info", "sdist"}


class BuildPy(build_py):
    """Also ships the lists of shapes, which a checkout keeps in benchmarks/, inside fastcnn.bench."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "fastcnn", "bench", "shapes")
            self.mkpath(str(folder))
            for path in sorted((ROOT / "benchmarks" / "shapes").glob("*.csv")):
                self.copy_file(str(path), str(folder / path.name))


def cuda_extension(home: Path) -> tuple[Extension, type]:
    """The extension and the build command. It needs no PyInit: torch.ops.load_library loads it."""
    import torch
    from torch.utils import cpp_extension

    # torch leaves this unset where torch itself is a CPU build, and takes a wrapper script's folder for it.
    cpp_extension.CUDA_HOME = str(home)
    # torch refuses a toolkit of another major version. Here that is harmless: cudart is linked statically and
    # none of torch's own CUDA symbols are. nvcc itself still checks the host compiler.
    cpp_extension._check_cuda_version = lambda *_: None
    architectures = cuda.architectures()
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(architectures)
    os.environ.setdefault("MAX_JOBS", str(cuda.default_jobs()))

    generated = ROOT / "build" / "generated"
    information = build_info.write_header(
        generated, "cuda", architectures, cuda.nvcc_version(home), torch.__version__
    )
    torch_include = Path(torch.__file__).parent / "include"
    includes = ["-isystem", str(torch_include), "-isystem", str(home / "include")]
    defines = [
        f"-DTORCH_TARGET_VERSION={build_info.TORCH_TARGET_DEFINE}",
        "-DTORCH_STABLE_ONLY",
        "-DUSE_CUDA",
        "-DFASTCNN_DISPATCH_KEY=CUDA",
    ]
    common = ["-std=c++17", "-O3", *defines, *includes]
    files = build_info.source_files(ROOT / "csrc")
    sources = [path for path in files if path.suffix in (".cpp", ".cu")]
    # Without ninja, these alone tell setuptools that a library built before is out of date.
    headers = [path for path in files if path not in sources]
    extension = Extension(
        "fastcnn._C",
        sources=[os.path.relpath(path, ROOT) for path in sources],
        depends=[os.path.relpath(path, ROOT) for path in (*headers, information)],
        include_dirs=[str(ROOT / "csrc"), str(generated)],
        extra_compile_args={
            "cxx": [*common, "-Wall", "-Wextra", "-fvisibility=hidden"],
            "nvcc": [*common, "-Xptxas=-v", "-Xcompiler=-Wall,-fvisibility=hidden"],
        },
        library_dirs=[str(torch_include.parent / "lib"), str(cuda.library_folder(home))],
        libraries=["torch_cpu", "c10", "cudart_static", "rt", "pthread", "dl"],
        extra_link_args=["-Wl,--exclude-libs,ALL"],
        py_limited_api=not sysconfig.get_config_var("Py_GIL_DISABLED"),
        language="c++",
    )
    return extension, cpp_extension.BuildExtension


home, why_not = cuda.toolkit_to_build_with()
if METADATA_COMMANDS.intersection(sys.argv):
    setup()
elif home is None:
    print(why_not, file=sys.stderr)
    setup(cmdclass={"build_py": BuildPy})
else:
    extension, build_extension = cuda_extension(home)
    setup(
        ext_modules=[extension],
        cmdclass={"build_py": BuildPy, "build_ext": build_extension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if extension.py_limited_api else {},
    )
