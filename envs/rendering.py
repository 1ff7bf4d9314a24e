"""OpenGL for MuJoCo: none at all until a picture is asked for, then the backend that this machine has.

`Renderer` draws a simulation, dm_control's or Gymnasium's, as fast as software does: into a buffer of the
picture's size, without shadows, reflections and multisampling, which cost twenty times the rest.

MuJoCo and dm_control read MUJOCO_GL once, when they are imported. dm_control is therefore imported with
rendering switched off (`without_gl`), and `enable` switches it on later, in the same process if need be.
"""

import atexit
import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from envs.errors import EnvError

LIBRARIES = {
    "egl": ("libEGL.so.1", "libEGL.so"),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
INSTALL = "apt-get install libegl1 (EGL, preferred) or apt-get install libosmesa6 (OSMesa, software)"
# Modules that read MUJOCO_GL when they are imported, and where they keep it.
READERS = {"mujoco.rendering.classic.gl_context": "_MUJOCO_GL", "dm_control._render": "BACKEND"}
OFF = ("off", "disable", "disabled", "false", "0")


def choose_backend() -> str:
    """The value for MUJOCO_GL: the user's own, else egl, else osmesa; glfw on macOS and Windows."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen and chosen not in OFF:
        return chosen
    if platform.system() != "Linux":
        return "glfw"
    for backend, names in LIBRARIES.items():
        if any(_loads(name) for name in names):
            return backend
    raise EnvError(f"Rendering needs OpenGL, and neither libEGL nor libOSMesa loads here. Run: {INSTALL}")


def enable() -> str:
    """Switch rendering on for MuJoCo and dm_control, imported already or not; returns the backend."""
    backend = choose_backend()
    os.environ["MUJOCO_GL"] = backend
    try:
        for name, variable in READERS.items():
            module = sys.modules.get(name)
            if module is not None and getattr(module, variable, None) != backend:
                importlib.reload(module)
    except (ImportError, AttributeError) as error:  # PyOpenGL reports a missing library as AttributeError
        raise EnvError(f"MUJOCO_GL={backend} does not work here ({error}). Run: {INSTALL}") from error
    return backend


def prepare() -> None:
    """For code that may import mujoco and render with it: a headless machine's MuJoCo needs MUJOCO_GL."""
    if "mujoco" not in sys.modules and "DISPLAY" not in os.environ:
        with suppress(EnvError):
            os.environ["MUJOCO_GL"] = choose_backend()


@contextmanager
def without_gl() -> Iterator[None]:
    """Whatever is imported inside loads no OpenGL library."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = before


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class Renderer:
    """Pictures (size, size, 3), uint8, of a MuJoCo simulation as one camera sees it now.

    All renderers of a process share one OpenGL context, so they must draw in the same thread.
    """

    def __init__(self, model: Any, data: Any, size: int, camera: Any) -> None:
        """`model` and `data` are mujoco's MjModel and MjData, `camera` its MjvCamera: see `find_camera`."""
        import mujoco

        self._mujoco = mujoco
        self._model, self._data, self._camera = model, data, camera
        self._now = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._buffer = np.empty((size, size, 3), np.uint8)
        self._heights = model.hfield_data.copy()
        with _made_for(model, size):
            make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)

    def render(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        mujoco, model = self._mujoco, self._model
        make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        if self._heights.size and not np.array_equal(self._heights, model.hfield_data):
            self._upload_heights()
        self._update_positions()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, self._now, self._option, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._rectangle, self._context)
        return np.ascontiguousarray(self._buffer[::-1])  # OpenGL's first row is the lowest

    def _update_positions(self) -> None:
        """Where bodies are now: after a step of MuJoCo, its data say where they were before it."""
        mujoco, model, now = self._mujoco, self._model, self._now
        mujoco.mj_copyState(model, self._data, now, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_kinematics(model, now)
        mujoco.mj_comPos(model, now)
        mujoco.mj_camlight(model, now)
        mujoco.mj_flex(model, now)
        mujoco.mj_tendon(model, now)

    def _upload_heights(self) -> None:
        """A terrain that was drawn anew at a reset."""
        self._heights = self._model.hfield_data.copy()
        for k in range(self._model.nhfield):
            self._mujoco.mjr_uploadHField(self._model, self._context, k)

    def close(self) -> None:
        make_current()
        self._context.free()


MAX_GEOMS = 2000  # that a picture can show
_gl: Any = None


def make_current() -> None:
    """The process's one OpenGL context, made at the first call, is the one that MuJoCo draws with."""
    global _gl
    if _gl is None:
        backend = enable()
        # Mesa's software renderer: threads of its own only fight with environments in other processes.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        try:
            from mujoco.gl_context import GLContext

            _gl = GLContext(64, 64)
            atexit.register(setattr, _gl, "_context", None)  # it ends with the process, not after its library
        except Exception as error:  # each backend has errors of its own
            raise EnvError(f"MUJOCO_GL={backend} gives no OpenGL context here ({error}). Run: {INSTALL}") from error
    _gl.make_current()


@contextmanager
def _made_for(model: Any, size: int) -> Iterator[None]:
    """A context made inside draws size x size pixels; the model's own wishes are for other renderers.

    Round bodies get as many facets as can be seen: in small pictures they are half of what drawing costs.
    """
    whole, quality = model.vis.global_, model.vis.quality
    own = whole.offwidth, whole.offheight, quality.offsamples, quality.numslices, quality.numstacks
    whole.offwidth = whole.offheight = size
    quality.offsamples = 0
    quality.numslices = min(quality.numslices, max(8, size // 4))
    quality.numstacks = min(quality.numstacks, max(4, size // 8))
    try:
        yield
    finally:
        whole.offwidth, whole.offheight, quality.offsamples, quality.numslices, quality.numstacks = own


def find_camera(model: Any, camera: int | str) -> Any:
    """The MjvCamera of an index or a name; -1 is the free camera, which every model has.

    Raises:
        EnvError: the model has no such camera.
    """
    import mujoco

    names = [model.camera(k).name for k in range(model.ncam)]
    index = names.index(camera) if camera in names else camera
    if not isinstance(index, int) or not -1 <= index < model.ncam:
        listed = ", ".join(f"{k} ({name})" if name else str(k) for k, name in enumerate(names))
        raise EnvError(f"There is no camera {camera!r}. There are: -1 (free){', ' * bool(names)}{listed}.")
    found = mujoco.MjvCamera()
    if index == -1:
        mujoco.mjv_defaultFreeCamera(model, found)
    else:
        found.type, found.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, index
    return found
