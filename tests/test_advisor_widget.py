"""The advisor shows qlab.advise's own numbers, in both languages, and its controls agree with each
other."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("anywidget")

from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.evaluation.machines import GIB, HARDWARE
from qlab.evaluation.mixtures import FILES, SERVED
from qlab.evaluation.shapes import SHAPES
from qlab.models.load import load
from qlab.plots.widget_advisor import END, START, draw_advisor, sentence
from qlab.widgets import advisor
from qlab.widgets.advisor_data import (
    BATCHES,
    CACHES,
    CONTEXTS,
    DEVICES,
    MEMORIES,
    TASK_NAMES,
    AdvisorState,
    advisor_data,
    memory_on,
)


def rects(picture, fill):
    """(left, top, right) of the bars of a colour, legend left out."""
    found = [p for m in picture.marks if getattr(m, "fill", "") == fill for p in m.points]
    boxes = [(p[:, 0].min(), p[:, 1].min(), p[:, 0].max()) for p in found]
    return sorted((b for b in boxes if b[1] < 500), key=lambda b: b[1])


def test_bars_are_the_bytes():
    data = qlab.advise("llama-3.1-70b", hardware="H100")
    picture = draw_advisor(data)
    scale = (END - START) / (1.4 * 80 * GIB)
    fits = [f for f in data.fits if f.fits]
    bars = zip(
        rects(picture, "blue")[1:], rects(picture, "orange")[-len(fits) :], fits, strict=True
    )
    for weights, cache, f in bars:
        assert weights[2] - weights[0] == pytest.approx(f.weights * scale, rel=1e-6)
        assert cache[0] == weights[2] and weights[0] == START
        assert cache[2] - cache[0] == pytest.approx(f.question.cache * scale, rel=1e-6)
    assert rects(picture, "blue")[0][2] == END  # BF16 goes on
    line = next(m for m in picture.marks if getattr(m, "width", 0) == 2 and m.stroke == "ink")
    assert line.points[0][0, 0] == pytest.approx(START + 80 * GIB * scale)


def test_numbers_are_the_librarys():
    state = AdvisorState(hardware="Apple M1 Max", memory=64)
    a, b = (
        advisor_data("llama-3.1-70b", state),
        qlab.advise("llama-3.1-70b", "64 GB", "Apple M1 Max"),
    )
    assert [f.need for f in a.fits] == [f.need for f in b.fits] and a.best.file == b.best.file
    words = [t.words for t in draw_advisor(a).marks if hasattr(t, "words")]
    assert "45.96 GB" in words and f"{b.best.room:,}" in words and "4.4–7.5" in words
    assert words.count("name a GPU for it") == 0 and words.count("not for this hardware") == 4


def test_sentences():
    def said(*arguments, **more):
        return sentence(qlab.advise(*arguments, **more), "en")

    assert said("llama-3.1-70b", "2x24 GB") == (
        "Q4_K_M is the best that fits with its context; Q5_K_M is 5.89 GB too large."
    )
    assert said("llama-3.1-70b", "24 GB").startswith("Nothing better than IQ2_XXS fits. A smaller")
    assert said("deepseek-v3", "24 GB").endswith("would fit: qwen2.5-32b (Q4_K_M).")
    assert said("deepseek-v3", "0.1 GB").startswith("Nothing suitable fits: Q4_K_M is 403.10 GB")
    assert "Nothing with 8 bits fits" in said("70B", 48, task="high stakes")
    assert said("llama-3.1-8b", 80) == "BF16, the best of all, fits with its context."


def test_the_picture_names_model_and_context():
    def title(*arguments, lang="en", **more):
        picture = draw_advisor(qlab.advise(*arguments, **more), lang)
        words = next(m.words for m in picture.marks if hasattr(m, "words"))
        assert picture.label.startswith(f"{words}; ")
        return words

    assert title("llama-3.1-70b", "48 GB") == "llama-3.1-70b, 8,192 tokens of context"
    assert title("13B", 24) == "13B (shape of qwen2.5-14b), 8,192 tokens of context"
    more = {"context": 4096, "batch": 4, "kv_bits": 8.5, "task": "math"}
    assert title("deepseek-v3", 640, **more) == (
        "deepseek-v3, 4,096 tokens of context, 4 sequences at once, KV cache in 8.5 bits, math"
    )
    assert title("llama-3.1-8b", 8, lang="ko") == "llama-3.1-8b, 컨텍스트 8,192토큰"


states = st.builds(
    AdvisorState,
    st.sampled_from(sorted(SHAPES)),
    st.sampled_from(DEVICES),
    st.sampled_from(MEMORIES),
    st.sampled_from(CONTEXTS),
    st.sampled_from(BATCHES),
    st.sampled_from([value for _, value in CACHES]),
    st.sampled_from(TASK_NAMES),
)


@given(states, st.sampled_from(["en", "ko"]))
def test_every_state_is_drawn(state, lang):
    memory = memory_on(state.hardware, state.memory)
    state = AdvisorState(state.model, state.hardware, memory, *list(vars(state).values())[3:])
    picture = draw_advisor(advisor_data(state.model, state), lang)
    svg = picture.svg()
    ElementTree.fromstring(svg)
    assert not re.search(r"\bnan\b|\binf\b", svg) and picture.label
    points = np.concatenate([p for m in picture.marks for p in getattr(m, "points", [])])
    assert points.min() >= 0 and points[:, 0].max() <= 740 and points[:, 1].max() <= picture.height
    names = {t.words for t in picture.marks if hasattr(t, "words")}
    assert {*FILES, *SERVED} <= names


def test_memories_are_sold():
    sold = {size for device in HARDWARE.values() for size in device.sizes}
    assert sold <= set(MEMORIES) and list(MEMORIES) == sorted(MEMORIES)
    assert memory_on("Apple M1 Max", 128) == 64 and memory_on("RTX 3090", 96) == 96
    assert memory_on("any", 6) == 6 and memory_on("any", None) == 24
    with pytest.raises(ValueError, match="did you mean 'RTX 4090'"):
        memory_on("RTX 409", None)


def test_moved_by_hand():
    widget = advisor()
    assert "Q4_K_M is the best that fits" in widget.view.svg and "25,220" in widget.view.svg
    widget.controls["hardware"].value = "Apple M2"  # takes its memory along
    assert widget.state.memory == 24 and "Apple M2 24GB" in widget.view.svg
    widget.controls["memory"].value = 512  # no Apple M2 has that
    assert widget.state.memory == 24
    widget.controls["hardware"].value = "RTX 3090"
    widget.controls["memory"].value = 48  # two of them
    assert "2 × RTX 3090 24GB" in widget.view.svg and "10–18" in widget.view.svg
    widget.controls["context"].value = 131_072
    before = widget.view.svg
    widget.controls["kv_bits"].value = 4.5
    assert widget.view.svg != before
    widget.set(task="benchmark", model="deepseek-v3")
    assert "BF16" in sentence(advisor_data("deepseek-v3", widget.state), "en")


def test_opened_with():
    assert advisor("13B", hardware="RTX 4090").state == AdvisorState("13B", "RTX 4090", 24)
    model = load("tiny")
    widget = advisor(model, "ko", memory=4)
    assert widget.state.model == model.name and re.search("[가-힣]", widget.view.svg)
    for wrong, words in [
        ({"hardware": "RTX 409"}, "RTX 4090"),
        ({"memory": 7}, "no 7"),
        ({"task": "maths"}, "'math'"),
    ]:
        with pytest.raises(ValueError, match=words):
            advisor(**wrong)
    with pytest.raises(ValueError, match="llama-3.1-8b"):
        advisor("llama-3.1-8c")
    figure = advisor().figure()
    assert figure.get_label().startswith("llama-3.1-70b, 8,192 tokens of context; 48 GiB: Q4_K_M")
