"""Draws a `Figure` in motion with OpenGL, off screen: on the GPU, or with Mesa's software driver.

Expressions are applied in numpy for many frames at once (`surface`), bones in the vertex stage. A frame takes two
passes: the shadow map of the key light, then all parts over the background, supersampled.
"""

from __future__ import annotations

from collections import OrderedDict
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamavatar.errors import UserError
from streamavatar.synth.human import shaders
from streamavatar.synth.human.figure import Array, Figure, Material, Motion, Part, Pixels, Scene
from streamavatar.synth.human.occlusion import bake
from streamavatar.synth.human.surface import Surface
from streamavatar.synth.human.view import VIEW_BYTES, bone_spheres, unseen_bones, view_block

SHADOW_SIZE = 512
SHADOW_SOFTNESS = 1.4 / SHADOW_SIZE
KEPT_FIGURES = 4
FRAMES_AT_ONCE = 16  # one matrix product; about 5 MB of vertices
MAX_BONES = 256  # three vec4 each fill 12 of the 16 KB every driver grants a uniform block
BONES, VIEW = 0, 1  # uniform blocks
COLOUR, NORMALS, OCCLUSION, SHADOW = 0, 1, 2, 3  # texture units
DRAWN = ("hair", "cloth", "skin", "eye", "teeth", "tongue", "brows", "lashes")  # near to far, roughly: hidden is cheap
CASTS = ("skin", "cloth", "hair")
SHEER = ("brows", "lashes")  # blended as a whole
SOLID = 0.6  # cover from which hair is drawn as solid

NO_OPENGL = (
    "rendering people needs {what}: pip install 'streamavatar[human]' and, for OpenGL without a display, "
    "apt-get install libegl1 libgl1 libgl1-mesa-dri"
)


class Renderer:
    """Renders pictures of `size` x `size` pixels, each the mean of `samples` x `samples`.

    Holds an OpenGL context: use it in the thread that made it, one per worker process, and close it.
    """

    def __init__(self, size: int, samples: int = 2) -> None:
        self.size, self.samples = size, samples
        self._gl: Any = open_context()
        side = size * samples
        self._figures: OrderedDict[int, _Loaded] = OrderedDict()
        self._programs = _programs(self._gl)
        self._colour = self._gl.texture((side, side), 4)
        self._target = self._gl.framebuffer([self._colour], self._gl.depth_renderbuffer((side, side)))
        self._picture = self._gl.framebuffer([self._gl.renderbuffer((size, size), 4)])
        shadow = self._gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        shadow.compare_func = "<="
        shadow.repeat_x = shadow.repeat_y = False
        self._shadow = self._gl.framebuffer(depth_attachment=shadow)
        self._view = self._gl.buffer(reserve=VIEW_BYTES, dynamic=True)
        self._bones = self._gl.buffer(np.zeros((MAX_BONES, 3, 4), np.float32).tobytes(), dynamic=True)
        self._backdrop = self._gl.vertex_array(self._programs["backdrop"], [])
        self._resolve = self._gl.vertex_array(self._programs["resolve"], [])
        for name in ("backdrop", "resolve"):
            self._programs[name]["samples"] = samples

    def __enter__(self) -> Renderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the context and all it holds; further calls of `render` fail."""
        if self._gl is not None:
            self._figures.clear()
            self._gl.release()
            self._gl = None

    def render(self, figure: Figure, motion: Motion, scene: Scene) -> Pixels:
        """uint8 RGB [F,size,size,3].

        Raises:
            ValueError: the background is not of this renderer's size, or the renderer is closed.
        """
        if self._gl is None:
            raise ValueError("the renderer is closed")
        if scene.background.shape != (self.size, self.size, 3):
            raise ValueError(f"the background is {scene.background.shape}, not {(self.size, self.size, 3)}")
        with self._gl:
            loaded = self._load(figure)
            loaded.cull(unseen_bones(loaded.spheres, motion.bones, scene.camera))
            self._view.write(view_block(scene))
            background = self._gl.texture(
                (self.size, self.size), 3, np.ascontiguousarray(scene.background), alignment=1
            )
            frames = np.empty((len(motion), self.size, self.size, 4), np.uint8)
            for start in range(0, len(motion), FRAMES_AT_ONCE):
                stop = min(start + FRAMES_AT_ONCE, len(motion))
                lively = loaded.lively(motion.expressions[start:stop])
                for frame in range(start, stop):
                    loaded.vertices.write(lively[frame - start])
                    self._bones.write(np.ascontiguousarray(motion.bones[frame], np.float32))
                    self._draw(loaded, background)
                    self._picture.read_into(frames[frame], components=4)
            background.release()
        return frames[..., :3].copy()

    def _load(self, figure: Figure) -> _Loaded:
        """The figure in the driver's memory, kept for the next call; it holds the figure, so its id stays its own."""
        found = self._figures.pop(id(figure), None) or _Loaded(self._gl, self._programs, figure)
        self._figures[id(figure)] = found
        while len(self._figures) > KEPT_FIGURES:
            self._figures.popitem(last=False)[1].release()
        return found

    def _draw_surface(self, drawn: _Drawn, thin: bool) -> None:
        gl, material = self._gl, drawn.part.material
        (gl.disable if material.double_sided else gl.enable)(gl.CULL_FACE)
        for unit, texture in drawn.textures.items():
            texture.use(unit)
        program = drawn.surface.program
        for name, value in (drawn.look | {"thin": thin}).items():
            if name in program:
                program[name] = value
        drawn.surface.render(vertices=drawn.count, first=drawn.first)

    def _draw(self, loaded: _Loaded, background: Any) -> None:
        gl = self._gl
        self._view.bind_to_uniform_block(VIEW)
        self._bones.bind_to_uniform_block(BONES)
        self._shadow.use()
        self._shadow.clear(depth=1.0)
        gl.enable_only(gl.DEPTH_TEST)
        for drawn in loaded.parts:
            if drawn.part.material.kind in CASTS:
                drawn.textures[COLOUR].use(COLOUR)
                drawn.shadow.render(vertices=drawn.count, first=drawn.first)

        self._target.use()
        self._target.clear(depth=1.0)
        gl.enable_only(gl.NOTHING)
        background.use(COLOUR)
        self._backdrop.render(vertices=3)
        gl.enable(gl.DEPTH_TEST)
        self._shadow.depth_attachment.use(SHADOW)
        for drawn in loaded.parts:
            if not drawn.sheer:
                self._draw_surface(drawn, thin=False)
        gl.enable_only(gl.DEPTH_TEST | gl.BLEND)
        self._target.depth_mask = False
        for drawn in loaded.parts:
            if drawn.part.material.cutout:
                self._draw_surface(drawn, thin=True)
        self._target.depth_mask = True

        self._picture.use()
        gl.enable_only(gl.NOTHING)
        self._colour.use(COLOUR)
        self._resolve.render(vertices=3)


class _Drawn:
    """One part in the driver's memory: where its triangles are in the index buffer, and how it looks."""

    def __init__(self, gl: Any, part: Part) -> None:
        self.part = part
        self.first = self.count = 0
        self.surface: Any = None
        self.shadow: Any = None
        material = part.material
        self.sheer = material.cutout and material.kind in SHEER
        self.textures = {COLOUR: _texture(gl, _colours(material), srgb=True)}
        if material.kind == "cloth":
            occlusion = np.full((1, 1), 255, np.uint8) if material.occlusion is None else material.occlusion
            self.textures[OCCLUSION] = _texture(gl, occlusion[..., None])
        if material.normals is not None:
            self.textures[NORMALS] = _texture(gl, material.normals[..., :3])
        tint = np.asarray(material.tint, np.float64)
        self.look = {
            "tint": tuple(np.where(tint <= 0.04045, tint / 12.92, ((tint + 0.055) / 1.055) ** 2.4)),
            "gloss": material.gloss,
            "most_cover": 2.0 if self.sheer else SOLID,
            "has_normals": material.normals is not None,
        }


class _Loaded:
    """A figure in the driver's memory."""

    def __init__(self, gl: Any, programs: dict[str, Any], figure: Figure) -> None:
        if len(figure.skeleton.names) > MAX_BONES:
            raise ValueError(f"the figure has {len(figure.skeleton.names)} bones, more than {MAX_BONES}")
        self.figure = figure
        self.mesh = Surface(figure)
        order = self.mesh.order
        self._joints = np.concatenate([p.bones for p in figure.parts])[order]
        self._weights = np.concatenate([p.weights for p in figure.parts])[order]
        self.spheres = bone_spheres(self.mesh.vertices, self._joints, self._weights, len(figure.skeleton.names))
        self._open, self._opened, self._opening = bake(gl, figure, self.mesh)

        lively = np.concatenate([self.mesh.vertices, self.mesh.normals, self._open[:, None]], axis=1)
        self.vertices = gl.buffer(lively.astype(np.float32).tobytes(), dynamic=True)
        fixed = np.zeros(len(order), [("uv", "f4", 2), ("joint", "u1", 4), ("weight", "f4", 4)])
        fixed["uv"] = np.concatenate([p.uv for p in figure.parts])[order]
        fixed["joint"], fixed["weight"] = self._joints, self._weights
        self._fixed = gl.buffer(fixed.tobytes())
        self._index = gl.buffer(reserve=4 * 3 * sum(map(len, self.mesh.triangles)), dynamic=True)

        by_kind = sorted(range(len(figure.parts)), key=lambda i: DRAWN.index(figure.parts[i].material.kind))
        self._triangles = [self.mesh.triangles[i] for i in by_kind]
        self.parts = [_Drawn(gl, figure.parts[i]) for i in by_kind]
        self._arrays: dict[str, Any] = {}
        for drawn in self.parts:
            drawn.surface, drawn.shadow = (
                self._array(gl, programs, name) for name in _program_names(drawn.part.material)
            )
        self._culled: bytes | None = None

    def _array(self, gl: Any, programs: dict[str, Any], name: str) -> Any:
        if name not in self._arrays:
            wanted = [
                (self.vertices, [("position", "3f"), ("normal", "3f"), ("open", "1f")]),
                (self._fixed, [("uv", "2f"), ("joint", "4u1"), ("weight", "4f")]),
            ]
            content = []
            for buffer, attributes in wanted:
                # A shader that does not read an attribute has none of that name: skip its bytes.
                form = " ".join(f if n in programs[name] else _padding(f) for n, f in attributes)
                content.append((buffer, form, *(n for n, _ in attributes if n in programs[name])))
            self._arrays[name] = gl.vertex_array(programs[name], content, self._index, index_element_size=4)
        return self._arrays[name]

    def lively(self, expressions: Array) -> Array:
        """[F,L,7]: position, normal and openness of the vertices that expressions move."""
        positions, normals = self.mesh.at(expressions)
        opening = np.clip(expressions @ self._opening, 0.0, 1.0)[:, None]
        live = self.mesh.live
        openness = self._open[:live] + opening * (self._opened - self._open)[:live]
        return np.concatenate([positions, normals, openness[..., None].astype(np.float32)], axis=-1)

    def cull(self, unseen: NDArray[np.bool_]) -> None:
        """Leave out the triangles that hang on unseen bones alone."""
        if unseen.tobytes() == self._culled:
            return
        self._culled = unseen.tobytes()
        seen = (~unseen[self._joints] & (self._weights > 0)).any(axis=1)
        first, kept = 0, []
        for drawn, triangles in zip(self.parts, self._triangles, strict=True):
            kept.append(triangles[seen[triangles].any(axis=1)])
            drawn.first, drawn.count = first, kept[-1].size
            first += kept[-1].size
        self._index.write(np.concatenate(kept).tobytes())

    def release(self) -> None:
        for thing in (*self._arrays.values(), self.vertices, self._fixed, self._index):
            thing.release()
        for drawn in self.parts:
            for texture in drawn.textures.values():
                texture.release()


def open_context() -> Any:
    """A moderngl context of its own, off screen.

    Raises:
        UserError: moderngl or EGL is missing.
    """
    try:
        import moderngl
    except ImportError as error:
        raise UserError(NO_OPENGL.format(what="moderngl")) from error
    create: Any = moderngl.create_context  # its types know no backend's options
    try:
        # By their full names: without the development packages there is no libEGL.so to find.
        return create(standalone=True, backend="egl", libegl="libEGL.so.1", libgl="libGL.so.1")
    except Exception as error:  # moderngl raises bare Exception
        raise UserError(NO_OPENGL.format(what=f"EGL ({error})")) from error


def _program_names(material: Material) -> tuple[str, str]:
    kind = f"surface {shaders.KINDS[material.kind]} {int(material.cutout)}"
    return kind, "shadow cutout" if material.cutout else "shadow"


def _programs(gl: Any) -> dict[str, Any]:
    programs = {
        "backdrop": gl.program(shaders.QUAD_VERTEX, shaders.BACKDROP_FRAGMENT),
        "resolve": gl.program(shaders.QUAD_VERTEX, shaders.RESOLVE_FRAGMENT),
        "shadow": gl.program(shaders.SHADOW_VERTEX, shaders.SHADOW_FRAGMENT),
        "shadow cutout": gl.program(shaders.SHADOW_VERTEX, shaders.SHADOW_CUTOUT_FRAGMENT),
    }
    for kind in sorted(set(shaders.KINDS.values())):
        for cutout in (0, 1):
            source = shaders.SURFACE_FRAGMENT.replace("{kind}", str(kind)).replace("{cutout}", str(cutout))
            source = source.replace("SOFTNESS", repr(SHADOW_SOFTNESS)).replace("SOLID", repr(SOLID))
            programs[f"surface {kind} {cutout}"] = gl.program(shaders.SURFACE_VERTEX, source)
    units = {"colour_map": COLOUR, "picture": COLOUR, "normal_map": NORMALS, "occlusion_map": OCCLUSION}
    for program in programs.values():
        for name, unit in (units | {"shadow_map": SHADOW}).items():
            if name in program:
                program[name] = unit
        for name, block in (("Bones", BONES), ("View", VIEW)):
            if name in program:
                program[name].binding = block
    return programs


def _padding(form: str) -> str:
    return {"1f": "4x", "2f": "8x", "3f": "12x", "4f": "16x", "4u1": "4x"}[form]


def _texture(gl: Any, picture: Pixels, srgb: bool = False) -> Any:
    height, width, channels = picture.shape
    form = {"internal_format": 0x8C43} if srgb else {}  # GL_SRGB8_ALPHA8
    texture = gl.texture((width, height), channels, np.ascontiguousarray(picture), alignment=1, **form)
    texture.build_mipmaps()
    texture.filter = (gl.LINEAR_MIPMAP_LINEAR, gl.LINEAR)
    return texture


def _colours(material: Material) -> Pixels:
    """The texture; in one with holes thin and black texels take the mean colour, so that edges have no dark fringe."""
    picture = material.texture
    if not material.cutout:
        return picture
    black = picture[..., :3].max(axis=-1) < 8
    solid = (picture[..., 3] > 200) & ~black
    if not solid.any():
        return picture
    share = np.where(black, 0.0, np.clip((picture[..., 3] - 40.0) / 160.0, 0.0, 1.0))[..., None]
    filled = picture.copy()
    filled[..., :3] = picture[..., :3] * share + picture[solid][:, :3].mean(axis=0) * (1 - share)
    return filled
