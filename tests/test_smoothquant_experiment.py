"""experiments/smoothquant_granularity.py end to end on the bundled model, and without a hub."""

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.activations import quantized_inputs

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "smoothquant_granularity.py"
SMALL = ["--tokens", "1024", "--context", "64", "--calibration", "1024", "--alphas", "0.2", "0.5"]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("smoothquant_granularity", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_table_of_the_constructed_outliers(script, tmp_path, capsys):
    """Every printed perplexity is the one kept, models come in the paper's order, and nothing of
    the paper's is among what was measured."""
    out = tmp_path / "found.json"
    assert script.main(["--model", "outliers", "--out", str(out), *SMALL]) == 0
    said = capsys.readouterr()
    kept = json.loads(out.read_text())
    names = ["float", "per tensor", "per token", "per channel", "static", "LLM.int8()"]
    names += ["α = 0.2", "α = 0.5", "α searched"]
    assert list(kept["measured"]) == names and kept["protocol"]["context"] == 64
    kl = {}
    for name in names:
        score = kept["measured"][name]["texts"][0]
        assert re.search(rf"^{re.escape(name)} .* {score['ppl']['value']:.3f} ±", said.out, re.M)
        kl[name] = score["kl"]["value"]
    assert kl["float"] == pytest.approx(0, abs=1e-6)
    assert kl["per tensor"] > 3 * kl["per token"] > 6 * kl["per channel"]  # Table 1
    assert kl["static"] > 5 * kl["α = 0.5"] and kl["LLM.int8()"] < kl["α = 0.5"]
    assert kl["α searched"] < 1.5 * min(kl["α = 0.2"], kl["α = 0.5"])
    for number in ("39.9", "42.5", "64.8"):
        assert number in said.out and number not in out.read_text()
    for words in ("accuracy", "not measured here", "constructed", "all rows but per channel"):
        assert words in said.out
    assert "times at layers" in said.err


def test_smoothing_undoes_constructed_outliers(script):
    """Whatever α: the smoothed model is that of the model without them, as the script says."""
    plain, loud = qlab.load("tiny"), script.the_model("outliers")
    made = []
    for model in (plain, loud):
        batches = qlab.calibration_batches(model, "english", tokens=1024, context=64)
        settings = {"act": "int8_static", "alpha": 0.3, "progress": False, "held_out": 0.0}
        made.append(qlab.quantize_model(model, "smoothquant", "int8_tensor", batches, **settings))
    tokens = jnp.arange(64)[None]
    a, b = (np.asarray(model(tokens)) for model in made)
    assert np.abs(a - b).max() < 0.05 * a.std()
    x, y = (np.asarray(model(tokens)) for model in (plain, loud))
    assert np.abs(a - x).max() > 0.1 * x.std() and np.abs(x - y).max() < 1e-3 * x.std()


def test_per_channel_has_one_scale_a_channel(script):
    given = argparse.Namespace(context=8, alphas=(0.5,), per_token="")
    act = script.rows(given)["per channel"]["act"]
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32) * [1, 100, 0.01]
    error = np.abs(np.asarray(quantized_inputs(jnp.asarray(x), act)) - x).max(0)
    assert (error <= np.abs(x).max(0) / 127 / 2 * 1.001).all() and error[2] > 0


def test_some_inputs_may_have_a_scale_for_each_token(script):
    """Only where ranges are static otherwise."""
    given = argparse.Namespace(context=8, alphas=(0.5,), per_token="*.down_proj")
    acts = {name: row["act"] for name, row in script.rows(given).items() if row}
    mixed = {"*.down_proj": "int8_token", "*": "int8_static"}
    assert acts["static"] == acts["α = 0.5"] == acts["α searched"] == mixed
    assert acts["per tensor"] == "int8_tensor" and acts["LLM.int8()"] == "llm_int8"
    assert script.integers(given).startswith("in all rows but per channel, whose")


def test_without_a_hub_it_says_what_is_missing(tmp_path):
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1';"
        f"os.environ['HF_HOME'] = {str(tmp_path)!r};"
        "sys.argv = ['smoothquant_granularity.py'];"
        f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (sentence,) = done.stderr.strip().splitlines()
    assert "nothing was measured" in sentence and "facebook/opt-1.3b" in sentence
    assert "39.9" not in sentence and "64.9" not in sentence


@pytest.mark.parametrize(
    "change, sentence",
    [(["--model", "tinny"], "tiny"), (["--alphas", "1.5"], "alpha 1.5"), (["--text", "x"], "'x'")],
)
def test_wrong_arguments_are_one_sentence(change, sentence, script, capsys):
    assert script.main(["--model", "tiny", *SMALL, *change]) == 2
    said = capsys.readouterr()
    assert sentence in said.err.strip().splitlines()[-1] and said.out == ""
