"""The ladder of GGUF mixtures: its widget shows the measured rows and nothing else, a plan sums to
the bytes of the file that was written, and the pure functions of the benchmark do what they say.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("anywidget")

from qlab.evaluation import Estimate, paired_difference
from qlab.models.export_gguf import plan_of, tensors_of, to_gguf
from qlab.models.load import load
from qlab.models.mixtures import MIXTURES, Row
from qlab.plots.widget_size_quality import (
    Point,
    change,
    colour_of,
    decades,
    draw_size_quality,
    listed,
    nearest,
    sentences,
)
from qlab.plots.widget_size_quality import axes as axes_of
from qlab.widgets import size_quality
from qlab.widgets.size_quality_data import (
    SizeQualityState,
    parts_of,
    size_quality_data,
    table_of,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gguf_ladder  # noqa: E402
import ladder_told  # noqa: E402

MODELS = ("tiny", "smollm2-135m")


@pytest.fixture(scope="module")
def table():
    return table_of()


@pytest.fixture(scope="module")
def measured():
    return {name: gguf_ladder.rows_of(name) for name in MODELS}


# ---- the numbers


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_the_measured_one(table, measured, name):
    rows, ladder = measured[name], table.models[name]
    assert list(rows) == list(ladder) and set(rows) == set(gguf_ladder.rows_wanted(name))
    for at, rung in ladder.items():
        one = rows[at]
        assert rung.plan == one.plan and rung.file_bytes == one.file_bytes
        assert rung.bits == pytest.approx(one.bits)
        for judged in table.facts["judged"]:
            score = one.row[judged]
            for what in ("kl", "dlnppl", "same_top1"):
                value, bar = rung.score(judged, what)
                estimate = getattr(score, what)
                assert value == pytest.approx(estimate.value, rel=1e-3, abs=1e-12)
                assert bar == pytest.approx(estimate.bar, rel=0.06, abs=1e-12)
            plain = rung.score(judged, "plain")
            assert (plain is None) == (not at[1])
            if plain:
                other = rows[at[0], ""].row
                pair = paired_difference(other, one.row, judged, "kl")
                assert plain[0] == pytest.approx(pair.value, rel=1e-3, abs=1e-12)


def test_the_page_is_what_the_rows_say(measured):
    facts = {"judged": gguf_ladder.JUDGED, "scored": gguf_ladder.SCORED, "seed": 0}
    facts |= {"context": gguf_ladder.CONTEXT, "counted": gguf_ladder.COUNTED}
    page = (ROOT / "benchmarks" / "results" / "gguf_ladder.md").read_text(encoding="utf-8")
    assert page == ladder_told.page(measured, facts)
    for name in MODELS:
        assert (
            ladder_told.summary(measured[name], gguf_ladder.JUDGED)
            == json.loads(gguf_ladder.SUMMARY.read_text(encoding="utf-8"))["models"][name]
        )


@pytest.mark.parametrize("mixture, read", [("F16", ""), ("Q4_0", ""), ("Q8_0", "")])
def test_a_plan_sums_to_the_bytes_of_a_written_file(table, mixture, read, tmp_path):
    """Written anew: the same plan, the same file to the byte."""
    model = load("tiny")
    rows = to_gguf(model, tmp_path / "again.gguf", mixture)
    rung = table.models["tiny"][mixture, read]
    assert tuple(rows) == rung.plan
    assert (tmp_path / "again.gguf").stat().st_size == rung.file_bytes
    from qlab.io import gguf

    held = gguf.read(tmp_path / "again.gguf")
    assert sum(t.raw.nbytes for t in held.tensors.values()) == sum(row.bytes for row in rung.plan)


def test_every_plan_is_the_mixtures_own(table):
    config, tensors = tensors_of(load("tiny"))
    for (mixture, read), rung in table.models["tiny"].items():
        assert rung.plan == tuple(plan_of(tensors, config, mixture, bool(read))), (mixture, read)
        data = parts_of(rung.plan)
        assert sum(part.bytes for part in data) == sum(row.bytes for row in rung.plan)
        assert 0 < rung.file_bytes - sum(part.bytes for part in data) < 200_000  # vocabulary


def test_what_the_ladder_says(table, measured):
    """The controls, and the claims that its page makes."""
    tiny = measured["tiny"]
    exact = tiny["F32", ""].row
    assert all(text.kl.value == 0 and text.same_top1.value == 1 for text in exact.texts)
    for mixture in ("F16", "Q8_0"):  # these types do not look at a matrix
        hashes = {tiny[mixture, read].row.weights_hash for read in gguf_ladder.READ}
        assert len(hashes) == 1
    for mixture in ("Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K"):
        assert len({tiny[mixture, read].row.weights_hash for read in gguf_ladder.READ}) == 3
    for text in gguf_ladder.JUDGED:
        kl = [tiny[file, ""].row[text].kl.value for file in ("Q8_0", "Q6_K", "Q4_K_M", "Q2_K")]
        assert kl == sorted(kl)
    assert all(row.type == row.wanted for one in tiny.values() for row in one.plan)
    small = table.models["smollm2-135m"]
    data = size_quality_data(table, SizeQualityState("smollm2-135m", "Q4_K_M"))
    assert data.fell_back == pytest.approx(0.75) and "75 % fell back" in sentences(data, "en")[0]
    assert measured["smollm2-135m"]["Q4_K_M", ""].row.name == "Q4_K_M, 75 % fell back"
    assert small["Q8_0", ""].bits < 8.6


# ---- what the widget says


def test_sentences_follow_from_the_bars(table):
    seen = set()
    for file in table.files("tiny"):
        for read in ("", "english", "korean"):
            for judged in table.facts["judged"]:
                state = SizeQualityState("tiny", file, read, judged)
                data = size_quality_data(table, state)
                said = sentences(data, "en")
                assert said[0].startswith(f"{file} keeps {100 * data.top1[0]:.1f} %")
                if data.larger:
                    value, bar = data.step
                    assert ("beyond" in said[1]) == (abs(value) > 2 * bar)
                    assert ("off the KL" in said[1]) == (value >= 0)
                    assert data.larger_bits > data.bits
                    seen.add((abs(value) > 2 * bar, value > 0))
                assert (len(said) == 3) == bool(read)
    assert (True, True) in seen
    top = size_quality_data(table, SizeQualityState(file="Q8_0"))
    assert top.larger is None and "No larger file" in sentences(top, "en")[1]
    same = size_quality_data(table, SizeQualityState(file="Q8_0", imatrix="english"))
    assert "does not look at it" in sentences(same, "en")[2]


def test_a_change_is_of_what_was_without():
    point = Point("Q2_K", "english", 3.0, (0.09, 0.01), (-0.01, 0.002))
    assert change(point) == (-10.0, 2.0)
    assert change(dataclasses.replace(point, kl=(0.0, 0.0), change=None)) == (0.0, 0.0)


def test_the_nearest_point_is_picked(table):
    data = size_quality_data(table, SizeQualityState())
    x, y = axes_of(data)
    for point in data.points:
        across = (float(x(point.bits)) - x.start) / (x.end - x.start)
        up = (float(y(point.kl[0])) - y.end) / (y.start - y.end)
        assert 0 <= across <= 1 and 0 <= up <= 1
        found = nearest(data, across, up)
        assert found.kl == point.kl and found.bits == point.bits
    assert decades(y) == sorted(decades(y)) and len(decades(y)) >= 3


def test_unknown_words_name_the_nearest(table):
    with pytest.raises(ValueError, match="file has no 'Q4_KM': did you mean 'Q4_K_M'"):
        size_quality(file="Q4_KM")
    with pytest.raises(ValueError, match="no files of 'tinny' were measured: did you mean 'tiny'"):
        size_quality(model="tinny")
    with pytest.raises(ValueError, match="judged on has no 'kroean': did you mean 'korean'"):
        size_quality(judged="kroean")
    with pytest.raises(ValueError, match="imatrix has no 'englihs': did you mean 'english'"):
        size_quality(imatrix="englihs")
    with pytest.raises(ValueError, match="no file 'Q3_K_X' of 'tiny' was measured: did you mean"):
        table.matrices("tiny", "Q3_K_X")
    with pytest.raises(ValueError, match="no importance matrix 'korean': measured are none"):
        size_quality_data(table, SizeQualityState("smollm2-135m", "Q2_K", "korean"))
    widget = size_quality()
    with pytest.raises(ValueError, match="model has no 'tinny'"):
        widget.set(model="tinny")
    assert widget.state == SizeQualityState()


def test_moved_by_hand():
    widget = size_quality(imatrix="korean", file="Q3_K_S")
    widget.picked("mixtures", 0.5, 0.0, "")
    assert widget.state.file == "Q8_0" and widget.state.imatrix == "korean"
    widget.picked("mixtures", 0, 0, "ArrowDown")
    assert widget.state.file == "Q6_K"
    widget.picked("files", 0, 0, "ArrowRight")
    widget.picked("files", 0, 0, "ArrowRight")
    assert widget.state.file == "Q8_0"
    widget.picked("files", 0.0, 0.0, "")
    assert widget.state.file == "Q2_K"
    widget.controls["model"].value = "smollm2-135m"  # its Q2_K has no matrix
    assert widget.state == SizeQualityState("smollm2-135m", "Q2_K", "", "english")
    widget.set(file="Q4_K_M", imatrix="english")
    assert "fell back" in widget.view.svg
    widget.set(model="tiny", file="IQ4_NL", imatrix="korean", judged="korean")
    assert widget.state == SizeQualityState("tiny", "IQ4_NL", "korean", "korean")
    assert "Korean matrix" in widget.view.svg


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"file": "Q2_K", "imatrix": "korean", "judged": "math"},
        {"model": "smollm2-135m", "file": "Q4_K_M", "imatrix": "english", "judged": "korean"},
    ],
)
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(table, state, lang):
    data = size_quality_data(table, SizeQualityState(**state))
    picture = draw_size_quality(data, lang)
    svg = picture.svg()
    assert not re.search(r"nan|inf ", svg.lower()) and len(svg) < 120_000
    assert set(re.findall(r'data-pick="(\w+)"', svg)) == {"files", "mixtures"}
    for mark in picture.marks:
        for points in getattr(mark, "points", []):
            assert points.min() >= -2 and points[:, 1].max() <= picture.height
            assert points[:, 0].max() <= picture.width + 2
    for file in listed(data):
        assert f">{file}</text>" in svg
    assert picture.label.startswith(data.file)


def test_a_table_of_ones_own(tmp_path, table):
    own = json.loads(gguf_ladder.SUMMARY.read_text(encoding="utf-8"))
    own["models"] = {"tiny": own["models"]["tiny"]}
    own["models"]["tiny"]["rows"] = [
        row for row in own["models"]["tiny"]["rows"] if row["mixture"] in ("Q4_K_M", "Q5_K_S")
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own))
    for given in (own, path, str(path)):
        widget = size_quality(table=given)
        assert widget.controls["file"].options == ("Q4_K_M", "Q5_K_S")
        assert widget.controls["model"].options == ("tiny",)


# ---- the benchmark's pure functions


def test_shares_that_fell_back():
    wide = Row("blk.0.ffn_down.weight", (2, 512), "Q4_K", "Q4_K", 576)
    narrow = Row("blk.0.attn_q.weight", (2, 1536), "Q5_0", "Q4_K", 2112)
    other = Row("token_embd.weight", (9, 576), "F16", "Q6_K", 1)
    assert gguf_ladder.fell_back([wide, narrow, other]) == 0.75
    assert gguf_ladder.fell_back([wide]) == gguf_ladder.fell_back([]) == 0
    assert gguf_ladder.called(("Q4_K_M", "korean"), [wide, narrow]) == (
        "Q4_K_M, 75 % fell back, imatrix korean"
    )
    assert gguf_ladder.called(("Q4_K_M", ""), [wide]) == "Q4_K_M"


def test_a_key_changes_with_what_a_row_depends_on():
    rows = [Row("blk.0.ffn_down.weight", (2, 512), "Q4_K", "Q4_K", 576)]
    key = gguf_ladder.key_of("hash", "tiny", ("Q4_K_M", ""), rows)
    assert key == gguf_ladder.key_of("hash", "tiny", ("Q4_K_M", ""), rows)
    others = {
        gguf_ladder.key_of("other", "tiny", ("Q4_K_M", ""), rows),
        gguf_ladder.key_of("hash", "smollm2-135m", ("Q4_K_M", ""), rows),
        gguf_ladder.key_of("hash", "tiny", ("Q4_K_M", "english"), rows),
        gguf_ladder.key_of("hash", "tiny", ("Q4_K_M", "korean"), rows),
        gguf_ladder.key_of("hash", "tiny", ("Q4_K_M", ""), []),
    }
    assert len(others) == 5 and key not in others


def test_the_next_larger_file(measured):
    rows = measured["tiny"]
    for at, one in rows.items():
        larger = ladder_told.next_larger(rows, at)
        between = [o for (_, read), o in rows.items() if read == at[1] and o.bits > one.bits]
        if larger is None:
            assert at[0] == "F32"
            continue
        assert larger[1] == at[1] and rows[larger].bits == min(o.bits for o in between)


def test_words_of_the_page():
    assert ladder_told.cell(Estimate(-0.0101, 0.002)) == "**−10.1 ± 2.0**"
    assert ladder_told.cell(Estimate(0.001, 0.002)) == "+1.0 ± 2.0"
    assert not ladder_told.beyond(Estimate(1.0, None))
    assert ladder_told.ranges([7, 8, 0, 1, 2, 5]) == "0–2, 5, 7, 8" and ladder_told.ranges([]) == ""
    rows = [
        Row("blk.0.attn_v.weight", (2, 256), "Q6_K", "Q6_K", 420),
        Row("blk.1.attn_v.weight", (2, 256), "Q5_0", "Q4_K", 352),
        Row("blk.0.attn_norm.weight", (256,), "F32", "F32", 1024),
    ]
    assert ladder_told.spelt(rows) == "v Q6_K [0] 420 B, v Q5_0 instead of Q4_K [1] 352 B"
    assert ladder_told.bits_by_kind(rows) == {"v": 6.03125, "norms": 32.0}


def test_colours_follow_the_bits():
    assert [colour_of(kind) for kind in ("Q4_K", "Q4_0", "IQ4_XS")] == ["blue"] * 3
    assert len({colour_of(f"Q{bits}_K") for bits in (2, 3, 4, 5, 6)}) == 5
    assert all(colour_of(one.base) != "sky" for one in MIXTURES.values())
