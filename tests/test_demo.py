"""The demo from end to end on the bundled model, and what it says when SmolLM2 cannot be had."""

import io
import json
import time

import pytest
from rich.console import Console

import qlab
from qlab import demo


def console():
    return Console(file=io.StringIO(), width=100)


@pytest.mark.slow
def test_demo_on_tiny(tmp_path, monkeypatch):
    out = console()
    table = demo.demo("tiny", 512, tmp_path / "d.json", tmp_path / "figures", out)
    said = out.file.getvalue()
    assert [row.name for row in table.rows] == ["float", demo.FLOOR, *demo.ROWS, *demo.METHODS]
    kl = {row.name: row["english"].kl.value for row in table.rows}
    assert kl["float"] == 0 and kl[demo.FLOOR] < 1e-8
    assert kl["GPTQ INT3 g64"] < kl["AWQ INT3 g64"] < kl["INT3 g64"]
    assert kl["HQQ INT3 g64"] < kl["INT3 g64"] and kl["SmoothQuant W8A8"] < 0.01
    began = time.perf_counter()
    again = demo.demo("tiny", 512, None, tmp_path / "figures", console())
    assert time.perf_counter() - began < 60  # the rows of methods are kept
    for a, b in zip(table.rows, again.rows, strict=True):
        assert a.to_dict() | {"seconds": 0} == b.to_dict() | {"seconds": 0}
    assert kl["INT8 channel"] < kl["INT4 g64"] < kl["INT3 g64"] < kl["INT2 g64"]
    assert demo.PROMPT in said and "peak memory" in said and "make lab" in said
    facts = json.loads((tmp_path / "d.json").read_text())
    assert set(facts["said"]) == set(demo.SPOKEN) and facts["peak_memory_bytes"] > 1e8
    names = {f.name for f in (tmp_path / "figures").iterdir()}
    assert {"demo_quality.png", "demo_quality.svg", "demo_quality.txt"} <= names


def test_demo_goes_on_with_tiny_and_says_so(monkeypatch):
    real = qlab.load

    def load(name):
        if name == "smollm2-135m":
            raise OSError("no network")
        return real(name)

    monkeypatch.setattr(qlab, "load", load)
    out = console()
    model = demo._load("smollm2-135m", out)
    said = out.file.getvalue()
    assert model.name == "tiny" and "no network" in said and "goes on with" in said
    with pytest.raises(ValueError):
        demo._load("tyni", out)


def test_specs_of_the_demo_exist():
    assert {*demo.ROWS.values()} <= set(qlab.SPECS)
    for method, spec, act in demo.METHODS.values():
        assert qlab.METHODS[method].supports(spec) and (act is None or act in qlab.ACTS)
    assert set(demo.SPOKEN) <= {"float", *demo.ROWS, *demo.METHODS}
