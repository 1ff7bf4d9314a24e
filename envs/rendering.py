"""OpenGL for MuJoCo: none at all until a picture is asked for, then the backend that this machine has.

MuJoCo and dm_control read MUJOCO_GL once, when they are imported. dm_control is therefore imported with
rendering switched off (`without_gl`), and `enable` switches it on later, in the same process if need be.
"""

import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
