"""Every picture is drawn from plain numbers, says itself in words, and has the same bytes twice."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from qlab import plots

POINTS = [
    {"name": "int4_g64", "bits": 4.25, "loss": 0.02, "bar": 0.001},
    {"name": "int2_g64", "bits": 2.25, "loss": 1.9, "bar": None},
    {"name": "int8_channel", "bits": 8.0, "loss": 1e-4, "bar": 2e-4},  # a bar below zero
]
FIGURES = {
    "quality": lambda: plots.size_quality(
        {"english": POINTS, "korean": POINTS}, floor={"english": 1e-12}, model="tiny"
    ),
    "weights": lambda: plots.weights_on_grid(
        np.random.default_rng(0).normal(size=(64, 64)),
        {"INT4": np.linspace(-3.5, 3.5, 15), "INT2": [-3.5, 0, 3.5]},
    ),
    "grid": lambda: plots.grid_study(
        [3, 4, 5], {"as stored": [0.1, 0, 0.04], "Gaussian": [0.1, 0.08, 0.04]}
    ),
    "training": lambda: plots.training_curve(
        np.arange(1, 100) * 1e4, 8 / np.arange(1, 100), {"math": ([5e5, 9e5], [2, 1])}
    ),
    "bars": lambda: plots.paired_bars(
        [{"name": "INT8", "difference": 0.001, "paired": 0.0002, "unpaired": 0.08}]
    ),
    "words": lambda: plots.continuations("It was", {"float": " a dark night", "INT2": ""}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_written_with_words_beside(name, tmp_path):
    svg, png, txt = plots.save(FIGURES[name](), tmp_path / "deep" / name, dpi=40)
    assert ET.parse(svg).getroot().tag.endswith("svg")
    assert png.read_bytes()[:4] == b"\x89PNG" and len(txt.read_text()) > 40
    again = plots.save(FIGURES[name](), tmp_path / "again" / name, dpi=40)
    assert [a.read_bytes() for a in (svg, png, txt)] == [b.read_bytes() for b in again]
    assert not list(tmp_path.rglob("*.part"))


def test_words_hold_the_numbers():
    assert "int4_g64 0.02 ± 0.001" in FIGURES["quality"]().get_label()
    assert "INT2, 3 levels" in FIGURES["weights"]().get_label()
    assert "4 bits 0.0800" in FIGURES["grid"]().get_label()


def test_error_of_a_grid_is_measured():
    w = np.array([0.0, 0.4, 1.0, -1.0])  # 0.4 goes to 0: √(0.16 / 2.16) = 27 %
    words = plots.weights_on_grid(w, {"ternary": [-1, 0, 1]}).get_label()
    assert "relative error 27 %" in words


def test_a_figure_without_words_is_refused(tmp_path):
    figure = FIGURES["bars"]()
    figure.set_label("")
    with pytest.raises(ValueError, match="alternative text"):
        plots.save(figure, tmp_path / "mute")


def test_importing_plots_draws_nothing():
    code = "import sys, qlab.plots; print('matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr
