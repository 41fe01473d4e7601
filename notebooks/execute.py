"""Executes the notebooks in place and keeps their pictures: `make notebooks [ARGS="name.ipynb"]`.

A committed page is read where no kernel runs, so a widget leaves its picture and nothing else:
widget state and views are dropped, as are timings and the kernel's details. A second run differs
only where a result does. Pictures are stored with a palette: a third of the bytes, the same look.
"""

import base64
import io
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
LIMIT = 500_000  # bytes: a notebook that is larger is no longer pleasant to open
COLOURS = 96  # in the palette of a picture: text and flat colours with their soft edges
WIDEST = 1500  # pixels: twice the width of a page's column
DROPPED = ("application/vnd.jupyter.widget-view+json",)


def execute(path: Path) -> int:
    """Runs one notebook from top to bottom and rewrites it; returns its size in bytes.

    Raises:
        ValueError: the executed notebook is larger than LIMIT.
        RuntimeError: a picture failed after its cell had ended.
        nbclient.exceptions.CellExecutionError: a cell failed; the file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    run(notebook)
    tidy(notebook)
    for number, cell in enumerate(notebook.cells):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise RuntimeError(f"{path.name}, cell {number}: {cell.source}")
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())
    if size > LIMIT:
        raise ValueError(f"{path.name} would have {size} bytes, more than {LIMIT}")
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
    return size


def run(notebook: nbformat.NotebookNode) -> None:
    """Executes all cells in order, in place, in the folder of the notebooks."""
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": HERE}}).execute()


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keeps what a reader needs and what a second run would repeat."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in DROPPED:
                data.pop(kind, None)
            if "image/png" in data:
                data["image/png"] = compress(data["image/png"])
                data["text/plain"] = "a picture"  # instead of <Figure size …> or a widget's repr
                output["metadata"] = {}


def compress(png: str) -> str:
    """A base64 PNG with a palette, at most WIDEST pixels wide."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    if flat.width > WIDEST:
        height = round(flat.height * WIDEST / flat.width)
        flat = flat.resize((WIDEST, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    paths = [HERE / Path(name).name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for notebook_path in paths:
        began = time.perf_counter()
        written = execute(notebook_path)
        seconds = time.perf_counter() - began
        print(f"{notebook_path.name}: {written:,} bytes, {seconds:.0f} s", flush=True)
    if not paths:
        print("there are no notebooks yet")
