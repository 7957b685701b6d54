"""What ships with the package: the default model, portraits with names, and a conversation for the demo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from streamavatar.errors import UserError

ASSETS = Path(__file__).parent / "assets"
DEFAULT_MODEL = "people-256"
DEFAULT_AVATAR, SECOND_AVATAR = "ada", "ben"


@dataclass(frozen=True)
class Portrait:
    """A bundled reference picture."""

    name: str
    path: Path
    description: str


def model_folder(name: str = DEFAULT_MODEL) -> Path:
    """The folder of a bundled model.

    Raises:
        UserError: if no model of that name ships.
    """
    folder = ASSETS / "models" / name
    if not (folder / "config.json").exists():
        shipped = ", ".join(sorted(p.parent.name for p in (ASSETS / "models").glob("*/config.json"))) or "none"
        raise UserError(f"no bundled model {name!r} (there are: {shipped}); give the path of a model folder")
    return folder


def portraits() -> dict[str, Portrait]:
    """The bundled portraits by name."""
    listed = json.loads((ASSETS / "portraits" / "portraits.json").read_text(encoding="utf-8"))
    return {
        name: Portrait(name, ASSETS / "portraits" / entry["file"], entry["description"])
        for name, entry in sorted(listed.items())
    }


def portrait(name: str) -> Portrait:
    """One portrait.

    Raises:
        UserError: naming those that exist.
    """
    known = portraits()
    if name not in known:
        raise UserError(f"no bundled avatar {name!r}; choose one of {', '.join(known)}, or give --image")
    return known[name]


def conversation() -> tuple[Path, Path]:
    """A short two-speaker conversation: the agent's lane and the user's lane."""
    return ASSETS / "dialogue" / "agent.flac", ASSETS / "dialogue" / "user.flac"
