"""experiments/awq_salient.py end to end on the bundled model, resumed, and without a hub."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.models.surgery import linears
from qlab.models.transformer import as_array
from tests.models_for_tests import OPT_CONFIG, random_model, write_hub_folder

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "awq_salient.py"
SMALL = ["--tokens", "1024", "--context", "64", "--calibration", "1024", "--shares", "1"]
SMALL += ["--seeds", "2", "--scales", "1", "2"]
ROWS = ["float", "RTN", "activation 1 %", "weight norm 1 %"]
ROWS += ["random 1 %, seed 0", "random 1 %, seed 1", "s = 2"]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("awq_salient", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return qlab.load("tiny")


@pytest.fixture(scope="module")
def stats(model):
    return qlab.calibrate(model, qlab.calibration_batches(model, "english", 512, 64))


@pytest.mark.slow  # seven models on four texts, then one of them again
def test_the_tables_of_the_constructed_outliers(script, tmp_path, capsys, monkeypatch):
    """Nothing of the paper's is among what was measured, the printed numbers are those kept, and a
    second run measures only what is missing."""
    out = tmp_path / "found.json"
    run = ["--model", "outliers", "--out", str(out), *SMALL]
    assert script.main(run) == 0
    said, kept = capsys.readouterr(), json.loads(out.read_text())
    assert list(kept["measured"]) == ROWS and list(kept["steps"]) == ["s = 1", "s = 2"]
    kl = {}
    for name in ROWS:
        row = script.Evaluation.from_dict(kept["measured"][name])
        assert [text.name for text in row.texts] == ["english", "code", "math", "korean"]
        assert script.line(name, *(str(text.ppl) for text in row.texts)) in said.out
        kl[name] = np.mean([text.kl.value for text in row.texts])
    assert kl["float"] == pytest.approx(0, abs=1e-6)
    others = [kl[name] for name in ROWS[3:6]]
    assert kl["activation 1 %"] < 0.9 * kl["RTN"] and kl["activation 1 %"] < min(others)  # Table 1
    for number in ("119.00", "44.87"):
        assert number not in out.read_text()
    assert "119.00" in said.out and "not measured here" in said.out and "constructed" in said.out
    assert "7/7 s = 2" in said.err and "to go" in said.err

    missing = json.loads(out.read_text())
    before = missing["measured"].pop("RTN")
    out.write_text(json.dumps(missing))
    assert script.main(run) == 0
    again = capsys.readouterr()
    assert "1/1 RTN" in again.err and again.out == said.out
    after = json.loads(out.read_text())["measured"]["RTN"]
    assert after["texts"] == before["texts"]

    monkeypatch.setattr(qlab, "evaluate", lambda *a, **k: pytest.fail("a row was measured again"))
    assert script.main(run) == 0 and capsys.readouterr().out == said.out
    assert script.main([*run, "--tokens", "512"]) == 2
    assert "tokens 1024, now it is 512" in capsys.readouterr().err
    assert json.loads(out.read_text())["measured"]["RTN"] == after


@pytest.mark.slow  # compiles another architecture
def test_a_folder_with_opt(script, tmp_path, capsys):
    """As the hub lays it out; its linears are 64 and 128 wide."""
    write_hub_folder(random_model(OPT_CONFIG, scale=4.0), tmp_path, eos_token_id=2)
    assert script.main(["--model", str(tmp_path), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "groups of 64 where 128 does not divide: 10 linears of width 64" in said
    assert "1 of 64; 1 of 128" in said


def test_kept_channels_are_float_and_the_others_those_of_rtn(script, model, stats):
    rtn = linears(script.rounded(model))
    for how in ("activation", "weight norm", "random"):
        found = linears(script.kept_in_float(model, stats, how, 3.0, seed=1))
        for path, layer in linears(model).items():
            w, new = np.asarray(layer.weight), np.asarray(found[path].weight)
            plain = np.asarray(as_array(rtn[path].weight))
            count = round(0.03 * w.shape[1])
            size = {
                "activation": np.asarray(stats[path].mean_abs),
                "weight norm": np.sqrt((w.astype(np.float64) ** 2).sum(0)),
            }.get(how)
            same = (new == w).all(0)
            assert same.sum() == count
            assert (new[:, ~same] == plain[:, ~same]).all()
            if size is not None:
                assert size[same].min() >= size[~same].max() * (1 - 1e-6)


def test_random_choices_differ_by_seed_and_layer(script, model, stats):
    path = "layers.0.self_attn.q_proj"
    w = linears(model)[path].weight
    masks = [script.chosen("random", w, stats[path], 3, seed) for seed in ((0, 0), (0, 1), (1, 0))]
    again = script.chosen("random", w, stats[path], 3, (0, 0))
    assert (masks[0] == again).all() and not (masks[0] == masks[1]).all()
    assert not (masks[0] == masks[2]).all() and {int(m.sum()) for m in masks} == {8}


def test_scaling_by_one_is_rtn_and_by_two_its_definition(script, model, stats):
    rtn, one, two = (
        linears(m)
        for m in (
            script.rounded(model), script.scaled(model, stats, 1), script.scaled(model, stats, 2)
        )
    )  # fmt: skip
    for path, layer in list(linears(model).items())[:7]:
        assert (as_array(one[path].weight) == as_array(rtn[path].weight)).all()
        w = np.asarray(layer.weight)
        mean = np.asarray(stats[path].mean_abs)
        c = np.ones(len(mean), np.float32)
        c[np.argsort(-mean, kind="stable")[: max(1, round(0.01 * len(mean)))]] = 2
        spec = script.spec_of(len(c))
        wanted = qlab.dequantize(qlab.quantize(jnp.asarray(w * c), spec)) / c
        assert (np.asarray(as_array(two[path].weight)) == np.asarray(wanted)).all()


@pytest.mark.parametrize("s", [1, 1.5, 4])
def test_steps_are_a_seventh_of_the_range_of_their_group(script, model, stats, s):
    """Table 2's left half, with numpy alone."""
    ratios, special = [], []
    for path, layer in linears(model).items():
        w, mean = np.asarray(layer.weight, np.float32), np.asarray(stats[path].mean_abs)
        c = np.ones(len(mean), np.float32)
        c[np.argsort(-mean, kind="stable")[: max(1, round(0.01 * len(mean)))]] = s
        steps = []
        for x in (w, w * c):
            groups = x.reshape(len(w), -1, 128)
            steps.append(((groups.max(-1) - groups.min(-1)) / np.float32(7)).astype(np.float16))
        ratios.append((steps[1] / steps[0].astype(np.float64)).ravel())
        one = (c.reshape(-1, 128) != 1).any(1)
        special.append(np.broadcast_to(one, steps[0].shape).ravel())
    r, special = np.concatenate(ratios), np.concatenate(special)
    found = script.changed_steps(model, stats, s)
    assert found["all"]["groups"] == r.size
    assert found["all"]["changed"] == pytest.approx((r != 1).mean(), abs=1e-3)
    assert found["all"]["step"] == pytest.approx(r.mean(), rel=1e-4)
    assert found["all"]["error"] == pytest.approx(r.mean() / s, rel=1e-4)
    if s == 1:
        assert found["all"]["changed"] == 0 and found["all"]["step"] == 1
    else:  # where nothing salient is, nothing changes
        assert (r[~special] == 1).all()
        assert found["salient"]["groups"] == special.sum()
        assert found["salient"]["step"] == pytest.approx(r[special].mean(), rel=1e-4)


@pytest.mark.parametrize("other", ["[]", "{}", "not JSON"])
def test_another_file_is_left_alone(script, tmp_path, capsys, other):
    out = tmp_path / "other.json"
    out.write_text(other)
    assert script.main([*SMALL, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1 and said.out == "" and out.read_text() == other


def test_groups_of_128_where_they_fit(script):
    widths = {128: 128, 768: 128, 1536: 128, 576: 64, 192: 64}
    assert {width: script.spec_of(width).block for width in widths} == widths
    assert [script.count_of(share, 576) for share in (0.1, 1, 3)] == [1, 6, 17]


def test_without_a_hub_it_says_what_is_missing(tmp_path):
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1';"
        f"os.environ['HF_HOME'] = {str(tmp_path)!r};"
        "sys.argv = ['awq_salient.py', '--model', 'facebook/opt-6.7b'];"
        f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (sentence,) = done.stderr.strip().splitlines()
    assert "nothing was measured" in sentence and "facebook/opt-6.7b" in sentence
    assert "23.54" not in sentence


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--model", "tinny"], "tiny"),
        (["--shares", "0"], "0 %"),
        (["--shares", "101"], "101 %"),
        (["--scales", "-2"], "scale of -2"),
        (["--seeds", "-1"], "--seeds -1"),
        (["--text", "koren"], "korean"),
        (["--context", "4096"], "4096"),
    ],
)
def test_wrong_arguments_are_one_sentence(change, sentence, script, capsys):
    assert script.main([*SMALL, *change]) == 2
    said = capsys.readouterr()
    assert sentence in said.err.strip().splitlines()[-1] and said.out == ""
