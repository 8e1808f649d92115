"""A pytest plugin that puts CPU tensors in the GPU's place, for a test of `pytest benchmarks` itself."""

from fastcnn.bench import session
from tests.benchmarks.bench_helpers import wall_settings

session.gpu_settings = lambda autotune=True: wall_settings(host_rounds=1, autotune=autotune)
