"""The calibration lab's widget shows the measured rows and nothing else; its verdict follows from
them; and the control holds: what a method that reads no text makes does not depend on the text."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.evaluation import Evaluation, paired_difference
from qlab.models.load import load
from qlab.models.surgery import linears
from qlab.plots.widget_calibration import (
    KL,
    MIXED,
    PPL,
    apart,
    draw_calibration,
    errors_away,
    sentence,
    signed,
)
from qlab.widgets import calibration
from qlab.widgets.calibration_data import RTN, CalibrationState, calibration_data, table_of

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "calibration_lab" / "tiny"
TABLE = json.loads((ROOT / "qlab" / "data" / "calibration_lab.json").read_text())


@pytest.fixture(scope="module")
def table():
    return table_of()


def measured(method, bits, text, windows) -> Evaluation:
    """A row as it was measured, from its own file."""
    file = ROWS / f"{method}_{bits}_bit_{text}_{windows}_windows.json"
    return Evaluation.from_dict(json.loads(file.read_text())["row"])


@pytest.mark.parametrize(
    "method, bits, windows", [("gptq", 3, 256), ("awq", 2, 4), ("gptq", 4, 16)]
)
@pytest.mark.parametrize("judged", ["korean", "code"])
def test_the_numbers_are_the_measured_ones(table, method, bits, windows, judged):
    data = calibration_data(table, CalibrationState(method, bits, windows, judged))
    rows = {text: measured(method, bits, text, windows) for text in data.texts}
    assert set(rows) == {"english", "korean", "code", "mixed", "random"}
    for text, row in rows.items():
        score, pair = row[judged], paired_difference(rows[MIXED], row, judged)
        assert data.costs[text] == pytest.approx((score.dlnppl.value, score.dlnppl.bar), rel=0.06)
        found = data.differences[text][judged]
        assert found[0] == pytest.approx(pair.value, rel=1e-3)
        assert found[1] == pytest.approx(pair.bar or 0.0, rel=0.06)
        place = data.sizes.index(windows)
        assert data.curves[text][place][0] == pytest.approx(score.kl.value, rel=1e-3)
    rtn = measured("rtn", bits, "random", 4)[judged]
    assert data.rtn[0] == pytest.approx(rtn.dlnppl.value, rel=1e-3)
    assert data.rtn_kl[0] == pytest.approx(rtn.kl.value, rel=1e-3)


def test_kl_is_compared_with_both_bars(table):
    data = calibration_data(table, CalibrationState(measure=KL, judged="math"))
    rows = {text: measured("gptq", 3, text, 256)["math"].kl for text in ("code", MIXED)}
    value, bar = data.differences["code"]["math"]
    assert value == pytest.approx(rows["code"].value - rows[MIXED].value, rel=1e-2)
    assert bar == pytest.approx(np.hypot(rows["code"].bar, rows[MIXED].bar), rel=0.06)
    assert data.differences[MIXED]["math"] == (0.0, 0.0)


def test_the_control_did_not_move(table):
    """Every run of RTN, whatever text it was given, scored the same to the bit."""
    files = sorted(ROWS.glob("rtn_*.json"))
    rows = [json.loads(file.read_text())["row"] for file in files]
    losses = {tuple(tuple(text["window_nll"]) for text in row["texts"]) for row in rows}
    assert len(files) == 60 == table.control[0] and table.control[1] == 0
    assert len(losses) == 3  # one for 4, 3 and 2 bits
    assert [key for key in table.rows if key[0] == RTN] == [(RTN, 4), (RTN, 3), (RTN, 2)]


@pytest.mark.parametrize(
    "method, moves", [("rtn", False), ("hqq", False), ("gptq", True), ("awq", True)]
)
def test_what_reads_no_text_does_not_move(method, moves):
    """English, Korean or nothing calibrated on: RTN and HQQ write the same bits, the others not."""
    model = load("tiny")
    path = "layers.1.self_attn.k_proj"
    w = linears(model)[path].weight
    spec = qlab.specs.hqq(3, 64) if method == "hqq" else qlab.specs.gptq(3, 64, sym=False)
    made = []
    for text in ("english", "korean"):
        stats = qlab.calibrate(model, qlab.calibration_batches(model, text, 1024, 128))[path]
        made.append(qlab.METHODS[method](w, stats, spec))
    if not moves:
        made.append(qlab.METHODS[method](w, None, spec))
    for other in made[1:]:
        same = [
            np.array_equal(np.asarray(a), np.asarray(b))
            for a, b in zip(_leaves(made[0]), _leaves(other), strict=True)
        ]
        assert all(same) is not moves


def _leaves(q):
    import jax

    return [leaf for leaf in jax.tree.leaves(q) if isinstance(leaf, jnp.ndarray)]


def test_the_verdict_follows_from_the_bars(table):
    """Two standard errors, in both directions, and the number of them in the sentence."""
    seen = set()
    for bits in (4, 3, 2):
        for judged in table.judges:
            for windows in (4, 256):
                data = calibration_data(table, CalibrationState("awq", bits, windows, judged))
                away = {t: data.differences[t][judged] for t in data.others}
                most = max(abs(value) / bar for value, bar in away.values())
                assert data.matters == (most > 2)
                words = sentence(data, "en")
                assert ("the choice of text matters" in words) == (most > 2)
                assert not data.matters or f" {most:.1f} standard errors" in words
                seen.add(data.matters)
    assert seen == {True, False}
    assert errors_away((0.0, 0.0)) == 0 and errors_away((0.1, 0.0)) == np.inf


def test_what_the_lab_says(table):
    """The claims of notebook 06 that rest on the table."""
    data = calibration_data(table, CalibrationState())
    assert data.costs["english"][0] > data.costs["korean"][0] + 0.05  # matched text, 3 bits
    assert data.farthest == "code" and data.matters
    four = calibration_data(table, CalibrationState(bits=4))
    spread = [max(d.costs.values())[0] - min(d.costs.values())[0] for d in (data, four)]
    assert spread[1] < spread[0] / 4
    awq = calibration_data(table, CalibrationState("awq"))
    gain = [d.curves[MIXED][0][0] / d.curves[MIXED][-1][0] for d in (data, awq)]
    assert gain[0] > 1.5 > 1.15 > gain[1]  # GPTQ needs text, AWQ hardly
    few = calibration_data(table, CalibrationState(windows=4))
    assert few.curves["english"][0][0] > few.rtn_kl[0]  # worse than reading nothing


def test_unknown_words_name_the_nearest():
    with pytest.raises(ValueError, match="judged on has no 'kroean': did you mean 'korean'"):
        calibration(judged="kroean")
    with pytest.raises(ValueError, match="method has no 'gtpq': did you mean 'gptq'"):
        calibration(method="gtpq")
    with pytest.raises(ValueError, match="windows has no 8: known are 4, 16, 64, 256"):
        calibration(windows=8)
    with pytest.raises(ValueError, match="no rows of 'tinny': did you mean 'tiny'"):
        calibration("tinny")
    widget = calibration(load("tiny"))  # a model is taken by its name
    with pytest.raises(ValueError, match="bits has no 8: known are"):
        widget.set(bits=8)


def test_a_table_of_ones_own(tmp_path):
    """Other texts, another baseline size; a table with a hole is refused."""
    entry = {"dlnppl": [0.1, 0.01], "kl": [0.2, 0.01], "mixed": [0.02, 0.02]}
    rows = [{"method": "rtn", "bits": 3, "judge": entry}]
    rows += [
        {"method": "gptq", "bits": 3, "text": text, "windows": 8, "judge": entry}
        for text in ("poems", MIXED)
    ]
    own = {"judged": ["judge"], "scored": {"mine": 8}, "scored_context": 64, "context": 32}
    own["models"] = {"mine": {"control": {"runs": 1, "differ": 0}, "rows": rows}}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    for given in (own, path, str(path)):
        widget = calibration("mine", table=given)
        assert widget.state == CalibrationState("gptq", 3, 8, "judge")
        assert "no text differs" in widget.view.svg and "poems" in widget.view.svg
    own["models"]["mine"]["rows"] = rows[:-1]
    with pytest.raises(ValueError, match="the table of 'mine' has no row of mixed"):
        calibration("mine", table=own)
    own["models"]["mine"]["rows"] = [*rows, {**rows[1], "windows": 4}]
    with pytest.raises(ValueError, match="no row of gptq, 3, mixed, 4"):
        calibration("mine", table=own)


@pytest.mark.parametrize(
    "state",
    [{}, {"method": "awq", "bits": 4, "windows": 4, "judged": "english"},
     {"bits": 2, "judged": "math", "measure": KL}],
)  # fmt: skip
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(table, state, lang):
    picture = draw_calibration(calibration_data(table, CalibrationState(**state)), lang)
    svg = picture.svg()
    assert not re.search("nan|inf ", svg.lower()) and len(svg) < 60_000
    assert set(re.findall(r'data-pick="(\w+)"', svg)) == {"windows", "judges"}
    for mark in picture.marks:
        for points in getattr(mark, "points", []):
            assert points.min() >= -2 and points[:, 1].max() <= picture.height
            assert points[:, 0].max() <= picture.width + 2
    assert picture.label and ("한국어" in svg) == (lang == "ko")


def test_labels_do_not_overlap():
    ends = apart([10.0, 11.0, 11.5, 40.0, 39.0])
    assert min(np.diff(sorted(ends))) > 13.9
    assert np.argsort(ends).tolist() == [0, 1, 2, 4, 3]
    assert signed(-0.1234, 0.01) == "−0.123 ± 0.010" and signed(0.0) == "+0.000"


def test_moved_by_hand():
    widget = calibration()
    assert widget.state == CalibrationState("gptq", 3, 256, "korean", PPL)
    widget.picked("windows", 0.34, 0.5, "")
    assert widget.state.windows == 16
    widget.picked("windows", 0, 0, "ArrowLeft")
    widget.picked("windows", 0, 0, "ArrowLeft")
    assert widget.state.windows == 4
    widget.picked("judges", 0.3, 0.5, "")
    assert widget.state.judged == "code" and "Judged on code" in widget.view.svg
    widget.picked("judges", 0, 0, "ArrowRight")
    assert widget.state.judged == "math"
    widget.picked("judges", 0.999, 0, "")
    widget.picked("judges", 0, 0, "Enter")
    assert widget.state.judged == "korean"
    widget.controls["measure"].value = KL
    assert "σ²" in widget.view.svg
    assert replace(widget.state, measure=PPL) == CalibrationState(windows=4)
