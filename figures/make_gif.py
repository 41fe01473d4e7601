"""The animated picture of the README: `weights(model)` in a real JupyterLab, moved by its own keys.

    python figures/make_gif.py      needs Chromium and the packages of the extras lab and dev

Writes figures/weights_widget.gif: bits from 8 to 2 and up to 4, then blocks from 16 to a row.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "browser"))

from lab import Lab, chromium  # noqa: E402 - found by the line above

from qlab.plots import style  # noqa: E402

CELLS = [
    "import qlab\nimport qlab.widgets as widgets\nmodel = qlab.load('tiny')",
    "widget = widgets.weights(model, layer='layers.1.self_attn.k_proj', bits=8, block=64)\nwidget",
    "widget.ready.wait(200)",
]
# (control, key, how often, milliseconds each is shown)
MOVES = [
    ("bits", "ArrowLeft", 6, 900),
    ("bits", "ArrowRight", 2, 900),
    ("block", "ArrowLeft", 2, 1100),
    ("block", "ArrowRight", 4, 1100),
]
COLOURS = 128  # half the bytes of 256


def frames() -> list[tuple[Image.Image, int]]:
    """(picture, milliseconds), one for the start and one for every move."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        lab = Lab(playwright, Path(folder) / "lab")
        try:
            notebook = lab.open(CELLS, "gif")
            notebook.run()
            box = notebook.page.locator(".qlab-weights > div").first

            def shot() -> Image.Image:
                area = box.bounding_box()
                clip = {**area, "x": area["x"] - 8, "y": area["y"] - 4, "width": 1036}
                clip["height"] = area["height"] + 8
                data = notebook.page.screenshot(clip=clip)
                return Image.open(io.BytesIO(data)).convert("RGB")

            found = [(shot(), 1500)]
            for control, key, count, milliseconds in MOVES:
                notebook.handle("qlab-weights", control).focus()
                for _ in range(count):
                    notebook.press("qlab-weights", key)
                    found.append((shot(), milliseconds))
            return found
        finally:
            lab.close()


def palette(picture: Image.Image) -> Image.Image:
    """The colours of all frames: those of one, and the house's own, however rare they are."""
    wide, high = picture.size
    canvas = Image.new("RGB", (wide, high + 30 * len(style.COLOURS)), "white")
    canvas.paste(picture)
    for i, colour in enumerate(style.COLOURS.values()):
        canvas.paste(colour, (0, high + 30 * i, wide, high + 30 * i + 30))
    return canvas.quantize(COLOURS)


def main() -> None:
    """Writes the file and says how large it is."""
    if chromium() is None:
        raise SystemExit("this script needs Chromium: apt-get install chromium fonts-noto-cjk")
    pictures, times = zip(*frames())
    colours = palette(pictures[0])
    small = [p.quantize(palette=colours, dither=Image.Dither.NONE) for p in pictures]
    target = HERE / "weights_widget.gif"
    part = target.with_suffix(".part")
    look = {"save_all": True, "append_images": small[1:], "duration": list(times), "loop": 0}
    small[0].save(part, format="GIF", optimize=True, **look)
    os.replace(part, target)
    print(f"{target.name}: {len(small)} pictures, {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
