"""Live human avatars that talk and listen: one picture and two audio lanes become a streamed video."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamavatar.avatar import Avatar

__version__ = "0.1.0"
__all__ = ["Avatar", "__version__"]


def __getattr__(name: str) -> object:
    """Load the public API on first use, so that `import streamavatar` does not load torch."""
    if name == "Avatar":
        return import_module("streamavatar.avatar").Avatar
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
