"""Pictures of what an agent did and what it dreamt: GIFs by Pillow, so that nothing needs a video codec.

T frames, H x W pixels, D observation dimensions.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Frames = NDArray[np.uint8]
"""(T, H, W, 3), or one channel, which is shown grey."""

SMALL = 1_000_000
"""Bytes: pictures of a dream stay below, so that a report can hold them."""
PANELS = 12
CAPTION = 14
TRUTH, DREAM = "#3b6fb6", "#d1495b"


def write_gif(
    path: Path | str, frames: Frames, fps: float, max_bytes: int | None = None, *, drawing: bool = False
) -> Path:
    """A looping GIF, whole or not at all. Equal neighbours become one frame that is shown longer.

    With ``max_bytes`` every second frame is dropped, at the same speed, until the file fits.
    A ``drawing`` has few colours, those of its last frame, and a far smaller file.
    """
    path, frames = Path(path), _rgb(frames)
    while True:
        data = _encode(frames, fps, drawing)
        if max_bytes is None or len(data) <= max_bytes or len(frames) < 4:
            break
        frames, fps = frames[::2], fps / 2
    return _write(path, data)


def dream_gif(
    path: Path | str,
    truth: Frames,
    dream: Frames,
    error: Frames | None = None,
    *,
    context: int = 0,
    fps: float = 8,
) -> Path:
    """truth | dream | error, with captions. The model sees the first ``context`` frames, then dreams.

    The agents' "report/video" (T, H, 3 W, C) goes in as ``*np.split(video, 3, axis=2)``. An error that
    is not given is drawn around grey: grey where the dream is right.
    """
    truth, dream = _rgb(truth), _rgb(dream)
    if error is None:
        error = ((dream.astype(np.int16) - truth + 255) // 2).astype(np.uint8)
    zoom = max(1, 160 // truth.shape[1])
    panels = [panel.repeat(zoom, 1).repeat(zoom, 2) for panel in (truth, dream, _rgb(error))]
    gap = np.full((*panels[0].shape[:2], 4, 3), 255, np.uint8)
    strip = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 2)
    width = panels[0].shape[2] + gap.shape[2]
    captions = []
    for t in range(len(strip)):
        image = Image.new("RGB", (strip.shape[2], CAPTION), "white")
        draw = ImageDraw.Draw(image)
        for k, text in enumerate(("truth", "seen" if t < context else "dream", "error")):
            draw.text((k * width + 2, 1), text, fill=DREAM if text == "dream" else "black")
        captions.append(np.asarray(image))
    return write_gif(path, np.concatenate([np.stack(captions), strip], 1), fps, SMALL)


def dream_plot(
    path: Path | str,
    truth: NDArray[np.floating],
    dream: NDArray[np.floating],
    *,
    names: Sequence[str] | None = None,
    context: int = 0,
    fps: float = 8,
) -> tuple[Path, Path]:
    """Real against dreamt observations (T, D): an animated GIF, and beside it the whole as a PNG.

    One small panel a dimension, those that vary most when there are many. The model sees the first
    ``context`` steps (shaded), then dreams.
    """
    path, truth, dream = Path(path), np.asarray(truth, np.float64), np.asarray(dream, np.float64)
    assert truth.shape == dream.shape and truth.ndim == 2, (truth.shape, dream.shape)
    spread = np.nan_to_num(truth.std(0))
    shown = sorted(np.argsort(-spread, kind="stable")[:PANELS].tolist())
    labels = [names[k] if names else f"observation {k}" for k in shown]
    full, empty, boxes = _draw_panels(truth[:, shown], dream[:, shown], labels, context)
    frames = np.repeat(empty[None], len(truth), 0)
    for t in range(len(truth)):
        for top, bottom, left, right in boxes:  # uncover each panel up to step t: two drawings make T frames
            edge = left + round((right - left) * (t + 1) / len(truth))
            frames[t, top:bottom, left:edge] = full[top:bottom, left:edge]
    rest = np.repeat(frames[-1:], round(2 * fps), 0)  # two seconds to look at the whole
    png = io.BytesIO()
    Image.fromarray(full).save(png, "PNG", optimize=True)
    strip = _write(path.with_suffix(".png"), png.getvalue())
    return write_gif(path, np.concatenate([frames, rest]), fps, SMALL, drawing=True), strip


def _draw_panels(
    truth: NDArray[np.floating], dream: NDArray[np.floating], labels: Sequence[str], context: int
) -> tuple[Frames, Frames, list[tuple[int, int, int, int]]]:
    """The panels with and without their lines (H, W, 3), and where each lies: top, bottom, left, right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, length = len(labels), len(truth)
    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.2 * columns + 0.4, 1.4 * rows + 0.5), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    lines, panels = [], []
    for k, label in enumerate(labels):
        panel = figure.add_subplot(rows, columns, k + 1)
        panels.append(panel)
        panel.axvspan(0, context - 0.5, color="#eeeeee", lw=0) if context else None
        lines += panel.plot(truth[:, k], color=TRUTH, lw=1.6, label="truth")
        lines += panel.plot(dream[:, k], color=DREAM, lw=1.4, ls="--", label="dream")
        panel.set_title(label, fontsize=8)
        panel.set_xlim(0, max(1, length - 1))
        panel.tick_params(labelsize=6, length=2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=lines[:2], loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    render = cast("Callable[[], None]", canvas.draw)  # matplotlib leaves it untyped
    pixels = cast("Callable[[], NDArray[np.uint8]]", canvas.buffer_rgba)
    render()
    figure.set_layout_engine("none")  # the same places with and without the lines
    full = np.array(np.asarray(pixels())[..., :3])
    boxes = []
    for panel in panels:
        box = panel.get_window_extent()
        height = len(full)
        boxes.append((int(height - box.y1), int(height - box.y0) + 1, int(box.x0), int(box.x1) + 1))
    for line in lines:
        line.set_visible(False)
    render()
    return full, np.array(np.asarray(pixels())[..., :3]), boxes


def _rgb(frames: Frames) -> Frames:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3) or not len(frames):
        raise ValueError(f"frames must be uint8 (T > 0, H, W, 3 or 1), not {frames.dtype} {frames.shape}")
    return np.repeat(frames, 3, -1) if frames.shape[-1] == 1 else frames


def _encode(frames: Frames, fps: float, drawing: bool) -> bytes:
    """GIF counts hundredths of a second, and viewers slow down below two of them."""
    palette = Image.fromarray(frames[-1]).quantize(32) if drawing else None
    colours, plain = (32 if drawing else 256), Image.Dither.NONE
    images = [Image.fromarray(frame).quantize(colours, palette=palette, dither=plain) for frame in frames]
    duration = max(20, 10 * round(100 / fps))
    data = io.BytesIO()
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return data.getvalue()


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path
