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


def layer(path, loss, rtn=0.2, held=None, **more):
    found = {"path": path, "error": 0.25, "loss": loss, "rtn_loss": None if loss is None else rtn}
    return {**found, "held_out_loss": held, "held_out_rtn_loss": held and rtn, **more}


LAYERS = {
    "model": "tiny", "method": "gptq", "spec": "int3_g64",
    "layers": [
        layer("layers.0.self_attn.q_proj", 0.1, held=0.12, rung=2),
        layer("layers.1.self_attn.q_proj", 0.3, held=0.28),
        layer("layers.0.mlp.fc2", 0.15, held=0.25, dead=7),
        layer("layers.1.mlp.fc2", 0.0, held=0.01),  # a logarithmic axis has no zero
    ],
}  # fmt: skip
FIGURES = {
    "layers": lambda: plots.layer_losses(LAYERS),
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


def test_layers_worse_than_rounding_are_named():
    figure = FIGURES["layers"]()
    said = figure.get_label()
    assert "layers.1.self_attn.q_proj (calibration text, 1.50 times)" in said
    assert "layers.0.mlp.fc2 (held-out text, 1.25 times)" in said  # better on what it has seen
    assert "layers.0.self_attn.q_proj (calibration" not in said and "fc2 0 to 0.15" in said
    assert "(rung 2)" in said and "layers.0.mlp.fc2 (7)" in said and "2 of 4 worse" in said
    q_proj, fc2 = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (q_proj, fc2)] == ["q_proj", "fc2"]
    curve = next(line for line in q_proj.lines if line.get_linestyle() == "-")
    assert curve.get_xydata().tolist() == [[0, 0.1], [1, 0.3]]
    assert {"1", "2"} == {text.get_text() for text in q_proj.texts}  # its block; the rung
    assert {"0", "7"} == {text.get_text() for text in fc2.texts}


@pytest.mark.parametrize("kinds", [1, 4, 6, 7, 9])
@pytest.mark.parametrize("blocks", [1, 30])
def test_layers_of_every_shape_are_drawn(kinds, blocks):
    rows = [layer(f"m.layers.{b}.kind{k}", None) for b in range(blocks) for k in range(kinds)]
    figure = plots.layer_losses({**LAYERS, "layers": rows})
    assert "no calibration text, so no loss" in figure.get_label()  # the weights' error instead
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == kinds < len(figure.axes)
    assert all(np.allclose(axes.lines[0].get_ydata(), 0.25) for axes in panels)
    with pytest.raises(ValueError, match="'tiny' has no quantized layers"):
        plots.layer_losses({**LAYERS, "layers": []})


def test_rounding_is_not_drawn_beside_itself():
    rows = [layer("layers.0.fc1", 0.2), layer("layers.1.fc1", 0.2)]
    figure = plots.layer_losses({**LAYERS, "method": "rtn", "layers": rows})
    assert len(figure.axes[0].lines) == 1 and "worse" not in figure.get_label()


def test_a_figure_without_words_is_refused(tmp_path):
    figure = FIGURES["bars"]()
    figure.set_label("")
    with pytest.raises(ValueError, match="alternative text"):
        plots.save(figure, tmp_path / "mute")


def test_importing_plots_draws_nothing():
    code = "import sys, qlab.plots; print('matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "False", said.stderr
