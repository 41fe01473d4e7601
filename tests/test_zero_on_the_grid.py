"""experiments/zero_on_the_grid.py: what it counts on a layer made for it, and its table."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import qlab

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "zero_on_the_grid.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("zero_on_the_grid", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def layer(loud: bool):
    """Weights and Stats of 64 inputs; with `loud`, three are 30 times louder and their weights
    100 times smaller, which is the case the script is about."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((96, 64)), rng.standard_normal((512, 64))
    if loud:
        x[:, [5, 20, 40]] *= 30
        w[:, [5, 20, 40]] /= 100
    return jnp.asarray(w, jnp.float32), qlab.Stats.from_inputs(jnp.asarray(x, jnp.float32))


@pytest.mark.parametrize("bits", [2, 3])
def test_a_level_on_zero_saves_small_weights_of_loud_inputs(script, bits):
    integer, real, hqq = script.one(*layer(loud=True), bits)["output"]
    assert real > 1.5 * integer and hqq > 1.5 * integer
    integer, real, hqq = script.one(*layer(loud=False), bits)["output"]
    assert real < 1.2 * integer and hqq < real


def test_what_is_counted(script):
    found = script.one(*layer(loud=True), 3)
    assert found["loudness"] == pytest.approx(30, rel=0.15)
    assert found["smallness"] == pytest.approx(0.01, rel=0.15)
    assert found["share"][1] > 0.9 > found["share"][0]  # real zero: nearly all of the error
    calm = script.one(*layer(loud=False), 3)
    assert calm["share"][0] == pytest.approx(3 / 64, rel=0.5)


def test_the_table_and_the_file_say_the_same(script, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert script.main(["--tokens", "512", "--out", str(out)]) == 0
    kept, said = json.loads(out.read_text()), capsys.readouterr().out
    rows = [r for r in kept["rows"] if r["path"].endswith(".v_proj") and r["bits"] == 2]
    assert len(rows) == 4 and kept["seed"] == 0 and kept["tokens"] == 512
    mean = np.mean([r["output"] for r in rows], axis=0)
    line = next(t for t in said.splitlines() if t.startswith("| v_proj") and "| 2 |" in t)
    assert all(f"{value:.1%} (" in line for value in mean)


def test_an_unknown_model_is_one_sentence(script, capsys):
    assert script.main(["--model", "no/such/folder"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
