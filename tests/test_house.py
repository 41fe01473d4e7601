"""The house keeps its shape: imports go down, public names are known and documented, the files
that must agree agree, and importing qlab stays cheap."""

import ast
import doctest
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import qlab

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "qlab"
SNAPSHOT = ROOT / "tests" / "snapshots" / "all.txt"

# The layer of every module or folder directly under qlab/. Imports go from a larger number to a
# smaller one. A new module gets a line here; a new exception needs a reason beside it.
LAYERS = {
    "arithmetic": 0, "formats": 0, "cache": 0, "suggest": 0,
    "rules": 1, "describe": 1, "qtensor": 1,
    "specs": 2, "stats": 2, "packing": 2, "ranges": 2,
    "activations": 2.5, "observers": 2.5, "fp8": 2.5,
    "methods": 3, "kernels": 3,
    "io": 4,
    "models": 5, "data": 5,
    "evaluation": 6,
    "plots": 7,
    "widgets": 8, "exercises": 8, "cli": 8, "demo": 8, "__main__": 8,
}  # fmt: skip
WITHIN = {
    ("formats", "arithmetic"),  # arithmetic is the floor
    ("qtensor", "rules"),  # a Spec's default rule is a function
    ("qtensor", "describe"),  # a Spec shows itself as a picture
    ("models", "data"),  # load("tiny") reads the bundled model
    ("cli", "demo"), ("__main__", "cli"),  # the command line calls the demo
}  # fmt: skip


def walk(node: ast.AST):
    """Every node, but not what only a type checker reads."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def imports_of(path: Path) -> list[str]:
    """The names directly under qlab that a file imports; "" is the package itself."""
    found = []
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]  # ("qlab", "methods")
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # `from qlab import formats` imports qlab.formats; `from qlab import fit` imports qlab.
            names = (
                [".".join(base + [a.name]) for a in node.names]
                if base == ["qlab"]
                else [".".join(base)]
            )
        else:
            continue
        for name in (n.split(".") for n in names):
            if name[0] == "qlab":
                found.append(name[1] if len(name) > 1 and name[1] in LAYERS else "")
    return found


def forbidden(importer: str, imported: str) -> bool:
    if imported == "":  # the package as users see it: only for what is drawn above it
        return LAYERS[importer] < 8
    same_or_named = importer == imported or (importer, imported) in WITHIN
    return not same_or_named and LAYERS[imported] >= LAYERS[importer]


def test_imports_go_down():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if unit == "__init__":
            continue
        assert unit in LAYERS, f"qlab/{unit} has no layer: give it one in tests/test_house.py"
        wrong += [
            f"{path.relative_to(ROOT)} imports qlab.{name}"
            for name in imports_of(path)
            if forbidden(unit, name)
        ]
    assert not wrong, "imports that go up or sideways:\n" + "\n".join(wrong)


def test_the_import_test_can_fail(tmp_path):
    assert forbidden("formats", "qtensor") and forbidden("methods", "kernels")
    assert forbidden("rules", "qtensor") and forbidden("methods", "")
    assert not forbidden("methods", "qtensor") and not forbidden("widgets", "plots")


def test_public_names_snapshot():
    names = sorted(qlab.__all__)
    if os.environ.get("QLAB_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text("\n".join(names) + "\n")
    assert SNAPSHOT.read_text().split() == names, (
        "qlab.__all__ changed; if on purpose, rewrite the snapshot: see CONTRIBUTING"
    )
    for name in names:
        assert getattr(qlab, name) is not None


PUBLIC = sorted(getattr(qlab, "__all__", []))
# Names that load lazily are looked up inside the test, so that one broken name fails one test.
PUBLIC_FUNCTIONS = [n for n in PUBLIC if inspect.isroutine(vars(qlab).get(n, print))]
# Examples that load a model, download or open something: read by people, run by other tests.
COSTLY = re.compile(
    r"load\(|evaluate\(|compare\(|generate\(|calibrate\(|quantize_model\(|save\(|qat\("
)


@pytest.mark.parametrize("name", PUBLIC_FUNCTIONS)
def test_public_functions_have_an_example(name):
    value = getattr(qlab, name)
    if not inspect.isroutine(inspect.unwrap(value) if callable(value) else value):
        return  # a module of the package, or a class
    text = inspect.getdoc(value) or ""
    examples = doctest.DocTestParser().get_doctest(text, {"qlab": qlab}, name, None, 0)
    assert examples.examples, f"the docstring of qlab.{name} has no example (>>>)"
    if COSTLY.search("".join(e.source for e in examples.examples)):
        return
    # The names of its own module are at hand in an example, as in a doctest of that module.
    examples.globs.update(inspect.unwrap(getattr(qlab, name)).__globals__)
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(examples, out=said.append)
    assert not said, "".join(said)


def run_python(code: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSTARTUP"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = ["matplotlib", "ipywidgets", "pandas", "typer", "rich", "IPython", "torch"]
    loaded = run_python(
        f"import sys, json, qlab; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    assert json.loads(loaded) == [], f"`import qlab` loads {loaded}"


def test_import_is_quick():
    """`import qlab` costs at most 0.3 s beyond `import jax`, in processor time: other processes
    may be busy, and a wall clock would time them too."""
    code = (
        "import time; import jax; t = time.process_time(); import qlab;"
        "print(time.process_time() - t)"
    )
    run_python(code)  # writes the bytecode
    seconds = sorted(float(run_python(code)) for _ in range(5))
    median = statistics.median(seconds)
    print(f"import qlab beyond import jax: {median:.3f} s, lowest {seconds[0]:.3f} s")
    assert seconds[0] <= 0.3, f"`import qlab` costs {median:.2f} s beyond `import jax`"


def requirements(lines: list[str]) -> dict[str, str]:
    """{"jax": ">=0.10.2"}: names as they compare, and the rest of the line."""
    split = (re.match(r"([\w.-]+(?:\[[\w,]+\])?)\s*(.*)", line) for line in lines)
    return {m[1].lower().replace("_", "-"): m[2].replace(" ", "") for m in split if m}


def test_environment_equals_pyproject():
    yaml = pytest.importorskip("yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = requirements(project["dependencies"] + extras["lab"] + extras["dev"])
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [e["pip"] for e in entries if isinstance(e, dict)]
    assert requirements([line for line in pip if not line.startswith("-")]) == wanted
    conda = requirements([e for e in entries if isinstance(e, str)])
    assert conda == {"python": project["requires-python"], "pip": ""}


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {version}" in citation
    assert getattr(qlab, "__version__", version) == version


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        pytest.fail("the list of tracked files needs git and a checkout")
    return [ROOT / line for line in done.stdout.splitlines()]


# Written in pieces, so that this file does not contain them.
MACHINE = re.compile(
    "|".join(
        [r"(?<![\w.])/" + "work/", r"(?<![\w.])/" + "tmp/", "/" + "root/", r"/" + r"home/\w+/"]
        + ["pypi" + r"\.org", "python" + "hosted", "index" + "-url"]
    )
)


def test_no_machine_paths_or_registries():
    wrong = []
    for path in tracked_files():
        if "texts" in path.parts or path.suffix in {".npz", ".safetensors", ".png", ".gguf"}:
            continue  # the bundled texts are other people's words
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(errors="ignore").splitlines(), 1):
            if MACHINE.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong, "paths of one machine or registry addresses:\n" + "\n".join(wrong)


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in ["README.md", "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text()
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M))
        unknown = named - targets
        assert named and not unknown, f"{page} names make targets that do not exist: {unknown}"


def test_makefile_scripts_exist():
    text = (ROOT / "Makefile").read_text()
    scripts = re.findall(r"\$\(BIN\)/python ([\w/]+\.py)", text)
    missing = [s for s in scripts if not (ROOT / s).is_file()]
    assert scripts and not missing, f"the Makefile runs files that do not exist: {missing}"


def test_wheel_carries_the_data():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert wheel["targets"]["wheel"]["packages"] == ["qlab"]
    assert "qlab/data/**" in wheel["targets"]["wheel"]["artifacts"]
