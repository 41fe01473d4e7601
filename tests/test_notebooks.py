"""The notebooks as a reader finds them: executed in order, short cells, pictures, no errors, and
the same after another run.
"""

import ast
import base64
import importlib.util
import io
import os
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

import qlab
from qlab.exercises import EXERCISES

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST = 8  # lines of a code cell


def load_execute():
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_execute()
every_notebook = pytest.mark.parametrize("path", PATHS, ids=[p.stem for p in PATHS])


def cells(path: Path, kind: str) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def python(source: str) -> ast.Module:
    return ast.parse("\n".join("" if s.startswith("%") else s for s in source.splitlines()))


def pictures(path: Path) -> list[bytes]:
    outputs = [o for c in cells(path, "code") for o in c.outputs]
    return [
        base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})
    ]


def test_there_are_notebooks():
    assert [p.name[:2] for p in PATHS[:2]] == ["00", "01"]


@every_notebook
def test_executed_in_order_without_error(path):
    code = cells(path, "code")
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    said = "".join(o.get("text", "") for c in code for o in c.outputs)
    assert "Traceback" not in said and "Warning" not in said


@every_notebook
def test_cells_are_short(path):
    for cell in cells(path, "code"):
        lines = cell.source.splitlines()
        assert len(lines) <= LONGEST, cell.source
        assert max(map(len, lines)) <= 100, cell.source


@every_notebook
def test_functions_are_exercises_only(path):
    """What qlab does is called, not written again; a stub is its docstring and three dots."""
    for cell in cells(path, "code"):
        for node in ast.walk(python(cell.source)):
            assert not isinstance(node, (ast.ClassDef, ast.Lambda)), cell.source
            if isinstance(node, ast.FunctionDef):
                assert node.name in EXERCISES, node.name
                assert len(node.body) == 2 and ast.get_docstring(node), cell.source
                assert ast.unparse(node.body[1]) == "..."
                assert f'qlab.exercises.check("{node.name}", {node.name})' in cell.source
                wanted = EXERCISES[node.name].solution.__code__
                assert [a.arg for a in node.args.args] == list(
                    wanted.co_varnames[: wanted.co_argcount]
                )


def test_every_exercise_has_its_stub_and_its_words():
    stubs, words = {}, {}
    for path in PATHS:
        for cell in cells(path, "code"):
            stubs |= dict.fromkeys(re.findall(r'exercises\.check\("(\w+)"', cell.source), path.name)
        for cell in cells(path, "markdown"):
            pattern = r"\*\*Exercise `(\w+)`\*\* ([●○]{3}) · (\d+) minutes"
            words |= {name: (dots, m) for name, dots, m in re.findall(pattern, cell.source)}
    assert set(stubs) == set(words) == set(EXERCISES)
    for name, exercise in EXERCISES.items():
        dots, minutes = words[name]
        assert exercise.marks.startswith(f"{dots} · {minutes} minutes"), name
        assert stubs[name].startswith(exercise.section[:2])


@every_notebook
def test_small_with_pictures_and_without_state(path):
    assert path.stat().st_size <= execute.LIMIT
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec"}
    text = path.read_text()
    assert "widget-view" not in text and "iopub" not in text
    found = pictures(path)
    assert len(found) >= 3
    for png in found:
        assert Image.open(io.BytesIO(png)).width <= execute.WIDEST


@every_notebook
def test_widgets_left_a_picture(path):
    shown = [c for c in cells(path, "code") if c.source.startswith("qlab.widgets.")]
    assert shown
    for cell in shown:
        assert any("image/png" in o.get("data", {}) for o in cell.outputs), cell.source


@every_notebook
def test_names_and_links_exist(path):
    """Every `qlab.name` in text and code is there, and every link to a file."""
    for cell in cells(path, "markdown") + cells(path, "code"):
        for name in re.findall(r"\bqlab\.(\w+)", cell.source):
            assert hasattr(qlab, name), f"qlab.{name}"
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", cell.source):
            assert (path.parent / link).exists(), link


# The first two run with every suite; the others take one to three minutes each, and CI runs them.
QUICK = ("00_", "01_")
every_run = pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.name.startswith(QUICK) else pytest.mark.slow) for p in PATHS],
    ids=[p.stem for p in PATHS],
)


@every_run
def test_runs_again(path, monkeypatch):
    """A second run fails nowhere and prints what the first one printed in the exercises."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = nbformat.read(path, as_version=4)
    before = [c.outputs for c in notebook.cells if "exercises.check" in c.source]
    execute.run(notebook)
    execute.tidy(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert [c.outputs for c in notebook.cells if "exercises.check" in c.source] == before


def test_compressing_keeps_the_picture():
    image = Image.new("RGBA", (2000, 100), (0, 114, 178, 255))
    out = io.BytesIO()
    image.save(out, format="PNG")
    png = execute.compress(base64.b64encode(out.getvalue()).decode())
    small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    assert small.size == (1500, 75) and small.getpixel((700, 30)) == (0, 114, 178)


def test_a_failing_cell_leaves_the_file_alone(tmp_path, monkeypatch):
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    broken.metadata = {"kernelspec": {"display_name": "", "language": "", "name": "python3"}}
    nbformat.write(broken, tmp_path / "broken.ipynb")
    before = (tmp_path / "broken.ipynb").read_bytes()
    with pytest.raises(Exception, match="division by zero"):
        execute.execute(tmp_path / "broken.ipynb")
    assert (tmp_path / "broken.ipynb").read_bytes() == before
