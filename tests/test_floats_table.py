"""benchmarks/results/floats.json says what the library does, and the tensors' errors are those that
independent implementations have.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import qlab
from benchmarks import floats
from qlab.activations import find

KEPT = json.loads((floats.RESULTS / "floats.json").read_text(encoding="utf-8"))
# Relative errors on N(0, 1), t4 and Laplace, measured on other implementations in C and numpy.
KNOWN = {
    "FP8 E4M3, one scale": (0.02648, 0.02636, 0.02645),
    "FP8 E5M2, one scale": (0.05266, 0.05239, 0.05283),
    "INT8, a scale for a row of 4096": (0.0087, 0.0298, 0.0145),
    "INT8, groups of 128": (0.00647, 0.01100, 0.00894),
    "INT4, groups of 128": (0.11744, 0.19242, 0.16022),
    "INT4, groups of 128, zero point": (0.10059, 0.14492, 0.13033),
    "MXFP4 floor": (0.1150, 0.131, 0.127),
    "MXFP4 rceil": (0.1154, 0.139, 0.132),
    "NVFP4": (0.09502, 0.09152, 0.09272),
    "NVFP4, Four over Six": (0.0869, 0.0866, None),
    "NF4": (0.09192, 0.11097, 0.10366),
    "INT3, groups of 128": (0.27404, 0.41199, 0.35634),
    "Q2_K, searched": (0.29669, 0.34150, 0.34401),
    "INT2, groups of 128": (0.76712, 0.78925, 0.78367),
    "INT2, groups of 128, zero point": (0.50344, 0.60330, 0.56646),
}


@pytest.mark.parametrize("name", KNOWN)
def test_errors_that_are_known(name):
    for got, want in zip(KEPT["errors"][name], KNOWN[name], strict=True):
        assert want is None or got == pytest.approx(want, rel=0.02)


@pytest.fixture(scope="module")
def drawn():
    return floats.draws()


@pytest.mark.parametrize("name", [n for n in floats.ERRORS if "Q2_K" not in n])
def test_errors_are_measured_again(name, drawn):
    """The whole of each draw; half of it where every range is searched, which takes seconds."""
    row = floats.ERRORS[name]
    some = slice(0, 128) if row.hyper else slice(None)
    got = [floats.relative_error(w[some], row) for w in drawn]
    np.testing.assert_allclose(got, KEPT["errors"][name], rtol=0.02)


def test_tails_decide_between_int8_and_fp8():
    int8, fp8 = (KEPT["errors"][n] for n in ("INT8, a scale for a row of 4096",
                                             "FP8 E4M3, a scale for a row"))  # fmt: skip
    assert int8[0] < fp8[0] / 2 and int8[1] > fp8[1]  # N(0, 1), t4
    assert max(fp8) / min(fp8) < 1.03 and max(int8) / min(int8) > 3


@pytest.mark.parametrize("draw, low, high", [(0, 0.44, 0.46), (1, 0.33, 0.35), (2, 0.33, 0.35)])
def test_four_over_six_chooses_four(draw, low, high, drawn):
    _, facts = qlab.four_over_six.with_facts(drawn[draw], None, qlab.SPECS["nvfp4"])
    assert low < float(facts["four"]) < high


def test_every_row_of_the_model_is_there():
    assert list(KEPT["model"]) == list(floats.MODEL)
    page = (floats.RESULTS / "floats.md").read_text(encoding="utf-8")
    assert page == floats.page(KEPT)
    for name, row in floats.MODEL.items():
        assert f"| {name} |" in page
        assert row is None or row.act is None or find(row.act)
    assert {name for pair in floats.PAIRS for name in pair} <= set(floats.MODEL)
    assert Path(floats.__file__).name == "floats.py"
