"""The one place of the version: pyproject.toml and the library's build information read it here."""

__version__ = "0.1.0"
