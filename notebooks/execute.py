"""Executes the notebooks in place and keeps their pictures: `make notebooks [ARGS="name.ipynb"]`.

Widget state, timings and the kernel's details are dropped, so that a second run differs only
where a result does. A page without widget state shows the picture that stands beside it.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
LIMIT = 500_000  # bytes: a notebook that is larger is no longer pleasant to open


def execute(path: Path) -> int:
    """Runs one notebook from top to bottom and rewrites it; returns its size in bytes.

    Raises:
        ValueError: the executed notebook is larger than LIMIT.
        nbclient.exceptions.CellExecutionError: a cell failed; the file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": HERE}}).execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > LIMIT:
        raise ValueError(f"{path.name} would have {len(text.encode())} bytes, more than {LIMIT}")
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
    return len(text.encode())


if __name__ == "__main__":
    paths = [HERE / Path(name).name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for notebook_path in paths:
        print(f"{notebook_path.name}: {execute(notebook_path)} bytes", flush=True)
    if not paths:
        print("there are no notebooks yet")
