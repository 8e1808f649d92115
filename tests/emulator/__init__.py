"""The emulator: the kernels, planner and bindings of csrc/ compiled by g++ and run on the host.

`build()` gives the operator library, to be loaded through FASTCNN_LIBRARY or fastcnn._library.load;
`controls()` the module that sets the emulated device's seed and reads its counters.
"""

from .library import EmulatorUnavailable, Variant, build, build_program, compiler
from .loading import controls

__all__ = ["EmulatorUnavailable", "Variant", "build", "build_program", "compiler", "controls"]
