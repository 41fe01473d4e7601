"""benchmarks/results/composition.md says what the library does: which combinations run, which are
refused and why, and what each costs on the layer it names.
"""

import importlib.util
import re
from pathlib import Path

import pytest

import qlab
from qlab.activations import ACTS, product

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "benchmarks" / "results" / "composition.md").read_text(encoding="utf-8")


def load_script():
    specification = importlib.util.spec_from_file_location(
        "composition", ROOT / "benchmarks" / "composition.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


script = load_script()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, header and rule left out."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_the_table_is_what_the_library_does():
    refusals = dict(re.findall(r"^\[(\d+)\] (.*?) *$", PAGE, re.M))
    kept = {
        ("" if first == "–" else first, then, name): cell
        for first, then, *cells in rows("Methods and formats")
        for name, cell in zip(script.KINDS.values(), cells, strict=True)
    }
    found = script.measured()
    assert kept.keys() == found.keys()
    for key, value in found.items():
        if isinstance(value, str):
            assert refusals[re.fullmatch(r"no \[(\d+)\]", kept[key])[1]] == value, key
        else:
            assert float(kept[key].rstrip("%")) / 100 == pytest.approx(value, rel=0.03), key


def test_every_method_and_act_stands_in_it():
    """A new one must take a place in the table."""
    assert {*script.FIRST, *script.THEN} - {""} == set(qlab.METHODS)
    listed = {row[0].strip("`"): row[1:] for row in rows("Quantized inputs")}
    assert list(listed) == list(ACTS)
    for act, cells in listed.items():
        for name, cell in zip(script.COLUMNS, cells, strict=True):
            assert cell == product(qlab.SPECS[name], ACTS[act]), (act, name)
