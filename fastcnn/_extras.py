"""Optional packages: imported when first needed, and missed in one clear sentence."""

import importlib
import importlib.util
from types import ModuleType

_DISTRIBUTIONS = {
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
}


class MissingExtraError(ImportError):
    """An optional package is needed and is not installed; the message names the extra that brings it."""


def _missing(root: str, extra: str) -> MissingExtraError:
    distribution = _DISTRIBUTIONS.get(root, root)
    return MissingExtraError(
        f"{distribution} is needed here and is not installed: pip install 'fastcnn[{extra}]'", name=root
    )


def require(module: str, extra: str = "train") -> ModuleType:
    """Import and return `module`, or raise `MissingExtraError` naming the extra that installs it."""
    root = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        raise _missing(root, extra) from error


def check_installed(*modules: str, extra: str = "train") -> None:
    """Raise `MissingExtraError` for the first module that isn't installed, importing none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, extra)
