"""A MakeHuman-style asset folder: what is in it, read once and kept.

    core/                      base.obj, targets.npz, default.mhskel, default_weights.mhw
    arkit_oculus_targets*.zip  morphs of the face: 52 ARKit shapes and 15 visemes, as `.target` files
    hair, clothes, eyebrows, eyelashes, teeth, tongue
                               one folder per piece: .obj, .mhclo (how it fits) and textures
    eyes/materials             iris textures
    skins*/                    skin textures, `<age>_<light|dark>skinned_<sex>_diffuse*`

`targets.npz` holds MakeHuman's shape targets in four arrays: `names`, `offsets` (one more than names), and the
`vertex` and `delta` rows that lie between two offsets. Lengths are in decimetres.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from streamavatar.errors import UserError
from streamavatar.synth.human.figure import Array, Pixels
from streamavatar.synth.human.fitting import Fitting, read_fitting
from streamavatar.synth.human.mesh import Mesh, read_obj
from streamavatar.synth.human.rig import Rig, read_rig

WHERE = (
    "The packs are free (CC0): MakeHuman's core assets and the MakeHuman community's asset packs "
    "(makehumancommunity.org), and the ARKit and Oculus targets of met4citizen/TalkingHead (MIT); "
    "docs/synthetic-people.md says which file goes where."
)
TEXTURE = 1024  # pixels; larger textures are scaled down, a face in the picture is smaller anyway
PIECES = ("hair", "clothes", "eyebrows", "eyelashes", "teeth", "tongue")

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A mesh that is worn: hair, clothes, brows, teeth. Paths are None where the pack lacks the texture."""

    mesh: Mesh
    fitting: Fitting
    diffuse: Path | None
    normals: Path | None
    occlusion: Path | None


@dataclass(frozen=True)
class Assets:
    """An asset folder. Compare and hash by folder, so that what depends on it can be kept.

    Attributes:
        folder: where it is.
        pieces: names of the pieces per kind in `PIECES`.
        eyes: iris textures by name.
        skins: skin textures by name, such as `young_lightskinned_female_diffuse2`.
    """

    folder: Path
    pieces: dict[str, tuple[str, ...]]
    eyes: dict[str, Path]
    skins: dict[str, Path]

    def __hash__(self) -> int:
        return hash(self.folder)

    @staticmethod
    def open(folder: Path | str) -> Assets:
        """Look through `folder`; meshes and textures are read when they are needed.

        Raises:
            UserError: the folder or a needed file is missing or damaged.
        """
        root = Path(folder).expanduser().resolve()
        if not root.is_dir():
            raise UserError(
                f"{root} is not an asset folder: give the folder that holds core, hair and clothes. {WHERE}"
            )
        pieces = {kind: _folders(root / kind, "*.mhclo") for kind in PIECES}
        eyes = {p.name.removesuffix("_eye.png"): p for p in _files(root / "eyes" / "materials", "*_eye.png")}
        skins = {p.stem: p for parent in _files(root, "skins*") for p in _files(parent, "*skinned_*_diffuse*")}
        assets = Assets(root, pieces, eyes, skins)
        _core(root)
        return assets

    @property
    def base(self) -> Mesh:
        return _core(self.folder)[0]

    @property
    def rig(self) -> Rig:
        return _core(self.folder)[1]

    @property
    def expressions(self) -> tuple[tuple[str, ...], Array]:
        """Names of the E morphs and their offsets [E,V,3]."""
        return _core(self.folder)[2]

    @property
    def targets(self) -> dict[str, tuple[NDArray[np.int64], Array]]:
        """Shape targets: the vertices [K] that each moves, and how far [K,3]."""
        return _core(self.folder)[3]

    def piece(self, kind: str, name: str) -> Piece:
        """A piece such as ("hair", "short04")."""
        if name not in self.pieces[kind]:
            raise UserError(f"{self.folder / kind} has no {name}: add it, or draw the identity anew. {WHERE}")
        return _piece(self.folder, kind, name)


def texture(path: Path, size: int = TEXTURE) -> Pixels:
    """uint8 RGBA [h,w,4], at most `size` pixels wide and high."""
    return _texture(path, size)


@lru_cache(maxsize=48)
def _texture(path: Path, size: int) -> Pixels:
    with _reading(path), Image.open(path) as picture:
        if max(picture.size) > size:
            picture.draft("RGB", (size, size))
        rgba = picture.convert("RGBA")
        if max(rgba.size) > size:
            rgba.thumbnail((size, size), Image.Resampling.LANCZOS)
        pixels = np.array(rgba)
    pixels.setflags(write=False)
    return pixels


class _reading:
    """Turns whatever goes wrong while a file is read into one line that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{self.path} is missing: the asset folder is not complete. {WHERE}") from error
        if isinstance(
            error, OSError | EOFError | ValueError | LookupError | TypeError | zipfile.BadZipFile | zlib.error
        ):
            raise UserError(f"{self.path} is damaged ({error}): get the file again. {WHERE}") from error


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    with _reading(path):
        return reader(path)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(f"{folder / pattern} is missing: the asset folder is not complete. {WHERE}")
    return found


def _folders(folder: Path, pattern: str) -> tuple[str, ...]:
    return tuple(sorted({p.parent.name for p in _files(folder, f"*/{pattern}")}))


@lru_cache(maxsize=2)
def _core(
    root: Path,
) -> tuple[Mesh, Rig, tuple[tuple[str, ...], Array], dict[str, tuple[NDArray[np.int64], Array]]]:
    """What every person shares."""
    core = root / "core"
    mesh = _read(core / "base.obj", read_obj)
    count = len(mesh.vertices)
    weights = core / "default_weights.mhw"
    if not weights.is_file():
        raise UserError(f"{weights} is missing: the asset folder is not complete. {WHERE}")
    rig = _read(core / "default.mhskel", lambda path: read_rig(path, weights, count))
    targets = _read(core / "targets.npz", lambda path: _read_targets(path, count))
    morphs = _read(_files(root, "arkit_oculus_targets*.zip")[0], lambda path: _read_morphs(path, count))
    return mesh, rig, morphs, targets


def _read_targets(path: Path, vertices: int) -> dict[str, tuple[NDArray[np.int64], Array]]:
    with np.load(path, allow_pickle=False) as packed:
        names, offsets, vertex, delta = (packed[key] for key in ("names", "offsets", "vertex", "delta"))
    vertex, delta = vertex.astype(np.int64), delta.astype(np.float32)
    if len(offsets) != len(names) + 1 or offsets[-1] != len(vertex) or vertex.max() >= vertices:
        raise ValueError("its arrays do not belong together")
    bounds = list(pairwise(offsets.tolist()))
    return {str(n): (vertex[a:b], delta[a:b]) for n, (a, b) in zip(names, bounds, strict=True)}


def _read_morphs(path: Path, vertices: int) -> tuple[tuple[str, ...], Array]:
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            match = re.fullmatch(r"(?!__MACOSX).*?([A-Za-z_]+)\.target", entry)
            if match:
                lines = [x for x in archive.read(entry).decode("utf-8").splitlines() if x[:1].isdigit()]
                table = np.array(" ".join(lines).split(), np.float32).reshape(len(lines), 4)
                morph = np.zeros((vertices, 3), np.float32)
                morph[table[:, 0].astype(int)] = table[:, 1:]
                found[match[1]] = morph
    if "jawOpen" not in found or "viseme_aa" not in found:
        raise ValueError("it lacks jawOpen or viseme_aa")
    names = tuple(sorted(found))
    return names, np.stack([found[name] for name in names])


@lru_cache(maxsize=32)
def _piece(root: Path, kind: str, name: str) -> Piece:
    folder = root / kind / name
    count = len(_core(root)[0].vertices)
    path = _files(folder, "*.mhclo")[0]
    fitting = _read(path, lambda path: read_fitting(path, count))
    mesh = _read(path.with_suffix(".obj"), read_obj)
    if len(mesh.vertices) != len(fitting.anchors):
        raise UserError(
            f"{path} fits {len(fitting.anchors)} vertices, its mesh has {len(mesh.vertices)}: get both again"
        )
    maps = {p.stem.rsplit("_", 1)[-1]: p for p in folder.glob("*.png")}
    if kind == "teeth":
        maps["diffuse"] = _files(root / kind / "materials", "*.png")[0]
    diffuse = maps.get("diffuse", maps.get(name))
    return Piece(mesh, fitting, diffuse, maps.get("normal"), maps.get("ao"))
