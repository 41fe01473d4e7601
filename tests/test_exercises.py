"""The exercises know a right answer from a wrong one, and say of every wrong one what is wrong.

The catalogued mistakes are checked through the public door; the answers below them are written as
a beginner writes them, with numpy, floats, wrong axes and two mistakes at a time.
"""

import doctest
import importlib
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab.exercises as exercises
from qlab.activations import ACTS, act_matmul
from qlab.evaluation.bars import bootstrap
from qlab.evaluation.roofline import Roof, crossover, decode_load, speedup
from qlab.evaluation.shapes import SHAPES
from qlab.exercises.judge import judge
from qlab.exercises.kernels import kernel_output
from qlab.formats import FORMATS, INT2, INT4, INT8, UINT4
from qlab.io.ggml import decode, encode, to_qtensor
from qlab.kernels import prepack, w4a16
from qlab.methods import qat
from qlab.methods.awq import awq, awq_candidates
from qlab.methods.four_over_six import four_over_six
from qlab.methods.gptq import factor, gptq
from qlab.methods.hqq import hqq_step
from qlab.methods.kquants_search import make_qx
from qlab.methods.smoothquant import smoothquant
from qlab.models import mixtures
from qlab.models.objective import Head, Mix, _token_loss
from qlab.observers import percentile
from qlab.qtensor import Spec, bits_per_weight, dequantize, fit, quantize
from qlab.rules import gptq_asym
from qlab.specs import SPECS
from qlab.stats import Stats

ALL = exercises.EXERCISES
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
MISTAKES = [
    pytest.param(e, m, id=f"{e.name}-{i}") for e in ALL.values() for i, m in enumerate(e.mistakes)
]


def said(capsys, name, function) -> str:
    exercises.check(name, function)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ALL)
def test_the_solution_passes(name, capsys):
    text = said(capsys, name, ALL[name].solution)
    assert text.startswith(f"✓ {name}: right on all {len(ALL[name].cases)} cases")


@pytest.mark.parametrize("exercise, mistake", MISTAKES)
def test_every_mistake_gets_its_own_words(exercise, mistake, capsys):
    text = said(capsys, exercise.name, mistake.function)
    assert text.startswith(f"○ {exercise.name}: not yet: ") and mistake.words in text, text


@pytest.mark.parametrize("name", ALL)
def test_a_stub_is_no_failure(name, capsys):
    text = said(capsys, name, lambda *args: ...)
    nothing = "written to w_ref" if name == "dequantize_tile" else "returned"
    assert re.search(f"not yet: nothing (is|was) {nothing} so far", text) and "●" in text
    assert f"hint({name!r})" in text


@pytest.mark.parametrize("name", ALL)
def test_every_exercise_is_complete(name):
    e = ALL[name]
    assert e.name == name and 1 <= e.difficulty <= 3 and 1 <= e.minutes <= 15
    assert len(e.cases) >= 3 and len(e.mistakes) >= 4 and len(e.hints) >= 2
    assert e.task.startswith(f"{name}(") and e.lesson.endswith(".")


@pytest.mark.parametrize("name", ALL)
def test_the_section_exists(name):
    number, heading = ALL[name].section.split(", ", 1)
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text())["cells"]
    headings = [
        line.lstrip("# ").strip()
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("#")
    ]
    assert any(h.endswith(heading.strip('"')) for h in headings), (heading, headings)


def test_the_solutions_agree_with_the_library():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(5, 64)), jnp.float32)
    right = {name: e.solution for name, e in ALL.items()}
    row, group = Spec(INT4), Spec(INT4, 16, "float32")
    np.testing.assert_allclose(right["scale"](w), fit(w, row).scale, rtol=1e-6)
    np.testing.assert_allclose(right["group_scale"](w, 16), fit(w, group).scale, rtol=1e-6)
    codes = right["codes"](w, right["scale"](w))
    np.testing.assert_array_equal(np.asarray(codes) + 8, quantize(w, row).codes)
    found = fit(w, Spec(UINT4, zero=UINT4, rule=gptq_asym))
    scale, zero = right["zero_point"](w)
    np.testing.assert_allclose(scale, found.scale, rtol=1e-6)
    np.testing.assert_array_equal(zero, UINT4.decode(found.zero.codes).reshape(5, 1))
    assert right["bits"](4, 128, 16) == bits_per_weight(Spec(INT4, 128, "float16"))
    two = quantize(w, qlab_spec("int2_channel"))
    np.testing.assert_allclose(right["lost"](w), (np.asarray(two.codes) == 2).mean(-1), rtol=1e-6)


def test_the_solutions_of_gptq_agree_with_the_library():
    """The exercises put together are GPTQ: same order, same codes; W − Q = E U, loss = ‖E‖²."""
    right = {name: e.solution for name, e in ALL.items()}
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(64, 8)) @ random.normal(size=(8, 8)), jnp.float32)
    w, stats = jnp.asarray(random.normal(size=(4, 8)), jnp.float32), Stats.from_inputs(x)
    q = gptq(w, stats, Spec(INT4), act_order=True)
    order = right["act_order"](stats.hessian)
    h = right["damped"](stats.hessian[order][:, order], 0.01)
    u = jnp.asarray(np.linalg.cholesky(np.linalg.inv(np.asarray(h, np.float64))).T, jnp.float32)
    now, scale = w[:, order], right["scale"](w)
    for j in range(8):
        column = right["codes"](now[:, j : j + 1], scale) * scale
        now = right["push"](now, u, j, column[:, 0])
    np.testing.assert_allclose(now, dequantize(q)[:, order], atol=1e-6)
    e = right["errors"](w[:, order], now, u)
    loss = right["output_loss"](w[:, order], now, h)
    np.testing.assert_allclose(loss, (e**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(right["scaled_u"](u, 4.0), factor(4 * h, 0.0)[0], atol=1e-5)
    diagonal = jnp.array([4.0, 1.0, 0.25])
    found = factor(jnp.diag(diagonal), 0.0)[0]
    np.testing.assert_allclose(right["diagonal_u"](diagonal), found, rtol=1e-6)


def test_the_solutions_of_awq_agree_with_the_library():
    """The exercises put together are AWQ without its cuts: same scale, same weights."""
    right = {name: e.solution for name, e in ALL.items()}
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(64, 8)) * np.array([1, 9, 2, 1, 4, 1, 1, 1]), jnp.float32)
    w, stats = jnp.asarray(random.normal(size=(4, 8)), jnp.float32), Stats.from_inputs(x)
    spec, ratios = Spec(INT4, 8), jnp.arange(20) / 20
    scales = [right["awq_scale"](stats.mean_abs, r) for r in ratios]
    np.testing.assert_allclose(scales, awq_candidates([w], stats, [spec])[1], rtol=1e-5)
    backs = [dequantize(quantize(w * s, spec)) / s for s in scales]
    losses = jnp.array([[right["output_loss"](w, back, stats.hessian) for back in backs]])
    best = right["best_ratio"](losses, ratios)
    q = awq(w, stats, spec, clip=False)
    np.testing.assert_allclose(q.channel_scale, right["awq_scale"](stats.mean_abs, best), rtol=1e-5)
    s = q.channel_scale
    np.testing.assert_allclose(w[:1] * s, right["fold"](jnp.ones(8), w[:1], s)[1])
    step = fit(w[:1] * s, spec).scale.reshape(())
    back = right["scaled_round"](w[:1], s, step)
    np.testing.assert_allclose(back, dequantize(quantize(w[:1] * s, spec)) / s, rtol=1e-5)
    np.testing.assert_array_equal(right["salient"](stats.mean_abs, 2), [1, 4])


def test_the_solutions_of_smoothquant_agree_with_the_library():
    """The exercises put together are SmoothQuant and LLM.int8(): same scales, codes, products."""
    right = {name: e.solution for name, e in ALL.items()}
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(16, 8)) * [1, 9, 2, 1, 0.1, 1, 1, 30], jnp.float32)
    w, stats = jnp.asarray(random.normal(size=(4, 8)), jnp.float32), Stats.from_inputs(x)
    spec, token = qlab_spec("int8_channel"), ACTS["int8_token"]
    q = smoothquant(w, stats, spec, alpha=0.8)
    s = right["smooth_scales"](stats.amax, [w], 0.8)
    np.testing.assert_allclose(s, q.channel_scale, rtol=1e-5)
    _, moved, scaled = right["smooth_fold"](jnp.ones(8), jnp.ones(8), w, s)
    np.testing.assert_allclose((x * moved) @ scaled.T, x @ w.T, rtol=1e-4, atol=1e-4)
    (qx, sx), (qw, sw) = right["int8_token"](x / s), right["int8_token"](scaled)
    found = quantize(x / s, token.spec)
    np.testing.assert_array_equal(qx, token.spec.format.decode(found.codes))
    np.testing.assert_allclose(sx, found.scale, rtol=1e-6)
    np.testing.assert_allclose(
        right["int_matmul"](qx, qw, sx, sw), act_matmul(x, q, token), rtol=1e-5, atol=1e-5
    )
    codes = ACTS["int8_tensor"].spec.format.decode(quantize(x, ACTS["int8_tensor"].spec).codes)
    levels = right["effective_levels"](x)
    np.testing.assert_array_equal(levels, 2 * np.abs(codes).max(0) + 1)
    outlying = right["outlier_channels"](x, 6.0)
    np.testing.assert_array_equal(np.flatnonzero(outlying), [1, 7])
    mixed = right["mixed_product"](x, *right["int8_token"](w), outlying)
    np.testing.assert_allclose(
        mixed, act_matmul(x, quantize(w, spec), ACTS["llm_int8"]), rtol=1e-4, atol=1e-4
    )


def test_the_solutions_of_calibration_agree_with_the_library():
    """Merged Stats, the bar beside the bootstrap's, the histogram's percentile, HQQ's own step."""
    right = {name: e.solution for name, e in ALL.items()}
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(48, 6)) * np.arange(1, 7), jnp.float32)
    a, b = Stats.from_inputs(x[:8]), Stats.from_inputs(x[8:])
    found = right["merged"](a.hessian, 8, b.hessian, 40)
    np.testing.assert_allclose(found, a.merge(b).hessian, rtol=1e-5, atol=1e-6)
    few = right["windows_needed"](6, 4)
    assert np.linalg.matrix_rank(np.asarray(x[: 4 * few].T @ x[: 4 * few])) == 6
    assert np.linalg.matrix_rank(np.asarray(x[: 4 * few - 4].T @ x[: 4 * few - 4])) < 6
    d = random.normal(0.1, 0.3, 64)
    value, bar = right["paired"](np.zeros(64), d)
    drawn = bootstrap(lambda mean: mean, d, seed=0)
    assert value == pytest.approx(d.mean()) and bar == pytest.approx(drawn, rel=0.05)
    assert right["verdict"](np.array([value]), np.array([drawn])) == np.sign(value)
    inputs = jnp.asarray(random.laplace(size=(4096, 4)), jnp.float32)
    ours, theirs = (
        right["percentile_range"](inputs, 99.0),
        percentile(Stats.from_inputs(inputs), 99),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1 / 8)  # a bin of the histogram
    w = jnp.asarray(random.normal(size=(5, 64)), jnp.float32)
    start = fit(w, qlab_spec("hqq4_g64").replace(scale="float32", zero="float32"))
    scale, zero = start.scale.reshape(5), start.zero.reshape(5)
    codes = jnp.clip(jnp.round(w / scale[:, None] + zero[:, None]), 0, 15)
    left = right["shrink"](w - (codes - zero[:, None]) * scale[:, None], 10.0, 0.7)
    theirs = hqq_step(w, scale, zero, UINT4)[1]
    ours = right["zero_update"](codes, w, left, scale)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_solutions_of_gguf_agree_with_the_library():
    """The exercises read real blocks as `decode` does, and fill them with ggml's own codes."""
    right = {name: e.solution for name, e in ALL.items()}
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 256)), jnp.float32)
    raw = encode(w, "Q4_0").reshape(-1, 18)
    scales = right["q4_0_scale"](w.reshape(-1, 32))
    np.testing.assert_array_equal(raw[:, :2].copy().view("<f2")[:, 0], np.float16(scales))
    numbers = [np.float32(block[:2].view("<f2")[0]) * (right["unpack_nibbles"](block[2:]) - 8.0)
               for block in raw]  # fmt: skip
    np.testing.assert_array_equal(np.ravel(numbers), decode(encode(w, "Q4_0"), "Q4_0").ravel())
    x, v = w[:, :16].T, jnp.abs(w[:, 16:32].T)
    scale, codes = make_qx(x, v, 32)
    found = [right["best_scale"](x[:, j], codes[:, j] - 32.0, v[:, j]) for j in range(4)]
    np.testing.assert_allclose(found, scale, rtol=1e-5)
    raw = encode(w, "Q4_K")
    q = to_qtensor(raw, "Q4_K")
    for block, row in enumerate(raw):
        s, m = right["scale_min_k4"](row[4:16])
        np.testing.assert_array_equal(s, q.scale.codes[8 * block : 8 * block + 8])
        np.testing.assert_array_equal(m, q.offset.codes[8 * block : 8 * block + 8])
        d, dmin = row[:4].view("<f2").astype(np.float32)
        ours = right["requantize"](w[block].reshape(8, 32), d, s, dmin, m)
        np.testing.assert_array_equal(ours.ravel(), q.codes[block])


def test_the_solutions_of_floats_agree_with_the_library():
    """Values, casts, scales and choices are those of FORMATS, SPECS and METHODS."""
    right = {name: e.solution for name, e in ALL.items()}
    np.testing.assert_array_equal(right["e4m3_value"](np.arange(256)), FORMATS["FP8"].grid)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 64)) * 3, jnp.float32)
    fp8 = fit(x, SPECS["fp8_tensor"])
    scale = float(fp8.scale.reshape(()))
    np.testing.assert_allclose(right["to_e4m3"](x, scale), dequantize(quantize(x, fp8)), rtol=1e-6)
    blocks = x.reshape(-1, 32)
    scales = right["power_scales"](blocks)
    for found, name in zip(scales, ("mxfp4", "mxfp4_rceil")):
        np.testing.assert_array_equal(found, dequantize(fit(x, SPECS[name]).scale))
    *errors, clipped = right["floor_and_rceil"](blocks, *scales)
    for found, name in zip(errors, ("mxfp4", "mxfp4_rceil")):
        back = dequantize(quantize(x, SPECS[name])).reshape(-1, 32)
        np.testing.assert_allclose(found, ((back - blocks) ** 2).sum(-1), rtol=1e-5)
    assert clipped.any() and not (jnp.abs(blocks) > 6 * scales[1][:, None]).any()
    np.testing.assert_allclose(right["nf4_levels"](0.9677083), FORMATS["NF4"].grid, atol=1e-5)
    assert right["nvfp4_bits"](6, 64) == bits_per_weight(quantize(x, SPECS["nvfp4"]))
    q = four_over_six(x, None, SPECS["nvfp4"])
    amax, alpha = jnp.abs(x.reshape(-1, 16)).max(-1), q.scale.scale[0]
    both = [FORMATS["FP8"].encode(amax / end / alpha) for end in (6.0, 4.0)]
    four = right["four_or_six"](x.reshape(-1, 16), *(FORMATS["FP8"].grid[c] * alpha for c in both))
    np.testing.assert_array_equal(np.where(four, both[1], both[0]), q.scale.codes)
    assert 0 < four.sum() < four.size


def test_the_solutions_of_mixtures_agree_with_the_library():
    right = {name: e.solution for name, e in ALL.items()}
    for n in (*range(1, 18), 24, 32, 61, 80, 126):  # each compiles anew
        wanted = [mixtures.more_bits(mixtures.Layer(i, n, 1, False)) for i in range(n)]
        np.testing.assert_array_equal(right["use_more_bits"](n), wanted)
    rows = [mixtures.as_it_is("a", (3, 256), "Q4_K"), mixtures.as_it_is("b", (9, 256), "Q6_K")]
    weights, bits = (np.array([getattr(r, key) for r in rows]) for key in ("weights", "bits"))
    found = right["bits_of_mixture"](weights, bits)
    assert found == pytest.approx(mixtures.bits_per_weight(rows))


def test_the_solutions_of_qat_agree_with_the_library():
    """Values and gradients of a row each: those that `qlab.qat` trains with."""
    right = {name: e.solution for name, e in ALL.items()}
    random = np.random.default_rng(0)
    w, g, x = (jnp.asarray(random.normal(size=(4, 16)), jnp.float32) for _ in range(3))
    learned = {"step": jnp.full((4, 1), 0.5)}
    q = quantize(w, qat.stored(learned, Spec(INT2)))
    mask = right["clipped_mask"](w, 0.5, -2, 1)
    assert 0 < mask.mean() < 1
    (found,) = jax.vjp(partial(qat.clipped, q=q), w)[1](g)
    np.testing.assert_array_equal(found, g * mask)
    slopes = right["lsq_slope"](w, 0.5, -2, 1)
    ours = [right["step_gradient"](*row, 1) for row in zip(g, slopes)]
    _, found = jax.vjp(partial(qat.lsq, q=q), w, learned)[1](g)
    np.testing.assert_allclose(ours, found["step"][:, 0], rtol=1e-5)
    fine = quantize(w, qat.stored({"step": jnp.full((4, 1), 0.25)}, Spec(INT8)))
    both = [jax.vjp(f, w) for f in (partial(qat.ste, q=fine), partial(stepped, right))]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_array_equal(both[0][1](g)[0], both[1][1](g)[0])
    alpha = jnp.float32(0.8)
    q = quantize(x, qat.pact_ranges(alpha, Spec(UINT4, "tensor")))
    found = jax.vjp(partial(qat.pact, q=q), x, alpha)[1](g)
    for ours, theirs in zip(right["pact_gradient"](g, x, 0.8), found):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    q = quantize(w, qlab_spec("bitnet"))
    codes, scale = right["absmean_ternary"](w)
    np.testing.assert_array_equal(codes, q.spec.format.decode(q.codes))
    np.testing.assert_allclose(scale, q.scale, rtol=1e-6)
    heads = [Head(logits, jnp.eye(16)) for logits in (3 * w, 3 * x)]
    mix = Mix(jnp.float32(0), jnp.float32(1), jnp.float32(2))
    theirs = _token_loss(heads[0], jnp.zeros(4, jnp.int32), jnp.full(4, 0.25), mix, heads[1])
    np.testing.assert_allclose(right["distillation"](3 * w, 3 * x, 2.0), theirs, rtol=1e-5)


def test_the_solutions_of_kernels_agree_with_the_library():
    """The arithmetic is the roofline's, the bytes are prepack's, the tiles are the kernels'."""
    right = {name: e.solution for name, e in ALL.items()}
    shape, roof = SHAPES["llama-3.1-8b"], Roof(3350e9, 989.4e12)
    weights = shape.params - shape.table
    ours = right["decode_bytes"](weights, 4.25, 2048, shape.cached, 16)
    assert ours == decode_load(shape, 4.25, 1, 2048).bytes
    batch = right["compute_bound_batch"](4.25, roof.bandwidth, roof.peak)
    assert batch == pytest.approx(crossover(shape, 4.25, roof))
    assert right["speedup_bound"](weights, 4.25, 0) == pytest.approx(speedup(shape, 4.25, roof, 1))
    tokens = right["cache_crossover"](weights, 4.25, shape.cached, 16)
    both = decode_load(shape, 4.25, 1, tokens).bytes
    assert both == pytest.approx(2 * decode_load(shape, 4.25).bytes)
    w = jnp.asarray(np.random.default_rng(0).normal(size=(5, 128)), jnp.float32)
    q = quantize(w, SPECS["int4_g64"])
    p = prepack(q)
    codes = right["kernel_nibbles"](p.codes)
    np.testing.assert_array_equal(codes.T, q.spec.format.decode(q.codes))
    x, scale = w[:3] + 1, p.scale.astype(jnp.float32)
    np.testing.assert_allclose(right["w4_tile"](x, codes, scale), w4a16(x, p), rtol=1e-4, atol=1e-4)
    empty = jnp.zeros(codes.shape)
    unpacked = kernel_output(right["dequantize_tile"], codes.astype(jnp.int8), scale, empty)
    np.testing.assert_allclose(unpacked.T, dequantize(q), rtol=1e-6)


def stepped(right, w):
    return right["straight_through"](w, 0.25)


def qlab_spec(name):
    from qlab.specs import SPECS

    return SPECS[name]


def right_error(w, w_hat):
    return np.linalg.norm(w - w_hat) / np.linalg.norm(w)


def loop_push(w, u, j, q):
    """Right, and written as loops over numpy."""
    w = np.array(w, np.float64)
    error = (w[:, j] - q) / u[j, j]
    for row in range(len(w)):
        for k in range(j + 1, w.shape[1]):
            w[row, k] -= error[row] * u[j, k]
    w[:, j] = q
    return w


def loop_scale(w):
    """Right, and written without jax: lists of floats."""
    return [[max(abs(float(x)) for x in row) / 7] for row in w]


def loop_matmul(qx, qw, sx, sw):
    """Right, and written with Python's own whole numbers."""
    rows = [[sum(int(a) * int(b) for a, b in zip(x, w)) for w in qw] for x in qx]
    return np.array(rows) * np.array(sx) * np.array(sw)[:, 0]


def numpy_token(x):
    """Right, and written without jnp.where: zeros divided by 1e-9 are zeros."""
    x = np.array(x)
    scale = np.abs(x).max(1)[:, None] / 127
    return np.rint(x / np.maximum(scale, 1e-9)), scale


def cut_out(x, qw, sw, outlying):
    """Right, and written as bitsandbytes does it: columns are cut out of both sides."""
    o = np.array(outlying)
    sx = np.abs(np.array(x)[:, ~o]).max(1, initial=0)[:, None] / 127
    codes = np.rint(np.array(x)[:, ~o] / np.where(sx == 0, 1, sx))
    y = codes @ np.array(qw, float)[:, ~o].T * sx * np.array(sw).T
    return y + np.array(x)[:, o] @ (np.array(qw, float) * np.array(sw))[:, o].T


def sorted_range(x, q):
    """Right, and written with a sorted list and one interpolation by hand."""
    size = sorted(abs(float(v)) for v in x)
    place = q / 100 * (len(size) - 1)
    k = min(int(place), len(size) - 2)
    p = size[k] + (place - k) * (size[k + 1] - size[k])
    return [max(float(min(x)), -p), min(float(max(x)), p)]


def by_the_bits(raw):
    """Right, and written with one long row of bits, byte 0 first, lowest bit first."""
    bits = np.unpackbits(np.array(raw), bitorder="little").reshape(12, 8)
    value = lambda *parts: np.concatenate(parts) @ 2 ** np.arange(6)  # noqa: E731
    scales = [value(bits[j, :6]) for j in range(4)]
    scales += [value(bits[8 + j, :4], bits[j, 6:]) for j in range(4)]
    minima = [value(bits[4 + j, :6]) for j in range(4)]
    return scales, minima + [value(bits[8 + j, 4:], bits[4 + j, 6:]) for j in range(4)]


def loop_codes(w, d, scales, dmin, minima):
    """Right, and written weight by weight."""
    step, least = d * np.array(scales), dmin * np.array(minima)
    return [[0 if s == 0 else min(max(round((float(x) + m) / s), 0), 15) for x in row]
            for row, s, m in zip(w, step, least)]  # fmt: skip


def by_a_table(code):
    """Right, and written number by number."""
    values = []
    for c in np.array(code, int):
        e, m = c % 128 // 8, c % 8
        size = (8 + m) / 8 * 2.0 ** (e - 7) if e else m / 512
        values.append(float("nan") if c % 128 == 127 else -size if c > 127 else size)
    return values


def loop_fp4(w, scale):
    """Right, and written weight by weight, with the levels of both signs."""
    levels = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    levels = [s * v for v in levels for s in (1, -1)]
    return np.array([sum(min((float(x) - float(s) * v) ** 2 for v in levels) for x in row)
                     for row, s in zip(w, scale)])  # fmt: skip


def by_bits(packed):
    """Right, and written with numpy's own int8: shifted up and down again."""
    signed = np.array(packed).view(np.int8)
    both = np.empty((2 * len(signed), signed.shape[1]), np.int8)
    both[0::2], both[1::2] = (signed << 4).astype(np.int8) >> 4, signed >> 4
    return both


def loop_tile(x, codes, scale):
    """Right, and written token by token, group by group."""
    size, y = len(codes) // len(scale), np.zeros((len(x), codes.shape[1]))
    for t in range(len(x)):
        for k in range(len(codes)):
            y[t] += float(x[t, k]) * np.array(codes[k], float) * np.array(scale[k // size])
    return y


def row_by_row(codes_ref, scale_ref, w_ref):
    """Right, and written with a loop over rows."""
    size = codes_ref.shape[0] // scale_ref.shape[0]
    for row in range(codes_ref.shape[0]):
        w_ref[row] = codes_ref[row].astype(jnp.float32) * scale_ref[row // size]


def returned(codes_ref, scale_ref, w_ref):
    return codes_ref[...].astype(jnp.float32) * scale_ref[0]


def unread(codes_ref, scale_ref, w_ref):
    w_ref[...] = codes_ref * scale_ref


def unread_scale(codes_ref, scale_ref, w_ref):
    w_ref[...] = codes_ref[...] * jnp.repeat(scale_ref, 2, axis=0)


def not_written(codes_ref, scale_ref, w_ref):
    w_ref = codes_ref[...] * scale_ref[0]  # noqa: F841


def without_a_cast(codes_ref, scale_ref, w_ref):
    w_ref[...] = codes_ref[...]


RIGHT = [
    ("decode_bytes", lambda w, b, t, c, k: np.float32(w * b + t * c * k) / 8),
    ("compute_bound_batch", lambda bits, bw, peak: (peak / bw) * (bits / 16)),
    ("cache_crossover", lambda w, b, c, k: (w * b / 8) / (c * k / 8)),
    ("speedup_bound", lambda w, b, rest: (16 * w + 8 * rest) / (b * w + 8 * rest)),
    ("kernel_nibbles", by_bits),
    ("w4_tile", loop_tile),
    ("w4_tile", lambda x, c, s: x @ (c * jnp.repeat(s, len(c) // len(s), axis=0))),
    ("dequantize_tile", row_by_row),
    ("e4m3_value", by_a_table),
    (
        "to_e4m3",
        lambda x, s: (
            np.array(jnp.clip(x, -448 * s, 448 * s) / s).astype(jnp.float8_e4m3fn).astype(float) * s
        ),
    ),
    (
        "power_scales",
        lambda w: [
            2.0 ** np.floor(np.log2(np.abs(w).max(1))) / 4,
            2.0 ** np.ceil(np.log2(np.abs(w).max(1) / 6)),
        ],
    ),
    (
        "floor_and_rceil",
        lambda w, f, r: (loop_fp4(w, f), loop_fp4(w, r), abs(w.T).T / f[:, None] > 6),
    ),
    ("nvfp4_bits", lambda n, m: (n * m * 4 + n * m / 16 * 8 + 32) / n / m),
    ("four_or_six", lambda w, six, four: loop_fp4(w, six) > loop_fp4(w, four)),
    ("unpack_nibbles", lambda raw: [int(b) % 16 for b in raw] + [int(b) // 16 for b in raw]),
    ("q4_0_scale", lambda w: [max(map(float, row), key=abs) / -8 for row in w]),
    ("q4_0_scale", lambda w: np.where(w.max(-1) > -w.min(-1), w.max(-1), w.min(-1)) / -8),
    ("best_scale", lambda w, q, v: np.nan_to_num(np.dot(v * w, q) / np.dot(v * q, q))),
    ("scale_min_k4", by_the_bits),
    ("requantize", loop_codes),
    (
        "use_more_bits",
        lambda n: [i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 for i in range(n)],
    ),
    ("bits_of_mixture", lambda weights, bits: np.average(bits, weights=weights)),
    ("int_matmul", loop_matmul),
    ("int8_token", numpy_token),
    ("mixed_product", cut_out),
    ("outlier_channels", lambda x, t: np.max(np.abs(x), 0) >= t),
    ("outlier_channels", lambda x, t: [any(abs(float(v)) >= t for v in c) for c in x.T]),
    ("smooth_scales", lambda a, ws, r: a**r * np.abs(np.concatenate(ws)).max(0) ** (r - 1)),
    ("effective_levels", lambda x: 1 + 2 * np.rint(127 * abs(x).max(0) / abs(x).max())),
    ("smooth_fold", lambda g, b, w, s: [g / s, b / s, w @ np.diag(s)]),
    ("push", loop_push),
    ("errors", lambda w, q, u: np.linalg.solve(np.array(u).T, np.array(w - q).T).T),
    ("output_loss", lambda w, q, h: jnp.trace((w - q) @ h @ (w - q).T)),
    ("act_order", lambda h: np.argsort(np.diag(h))[::-1]),
    ("diagonal_u", lambda h: np.linalg.cholesky(np.linalg.inv(np.diag(h))).T),
    ("windows_needed", lambda inputs, context: np.ceil(inputs / context)),
    ("paired", lambda a, b: (np.mean(b - a), np.sqrt(np.var(b - a) / (len(a) - 1)))),
    ("verdict", lambda v, b: (np.array(v) > 2 * b).astype(int) - (np.array(v) < -2 * b)),
    ("percentile_range", sorted_range),
    ("scale", loop_scale),
    ("scale", lambda w: np.abs(np.asarray(w, np.float64)).max(-1)[:, None] / 7),
    ("memory", lambda p, b: p / 1e9 / 8 * b),
    ("relative_error", lambda w, v: ((w - v) ** 2).sum() ** 0.5 / max((w**2).sum() ** 0.5, 1e-9)),
    ("codes", lambda w, s: np.nan_to_num(np.rint(w / s)).clip(-8, 7).astype(int)),
    ("codes", lambda w, s: jnp.clip(jnp.floor(w / (s + (s == 0)) + 0.5), -8, 7)),
]


@pytest.mark.parametrize("name, function", RIGHT)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_other_right_answers_pass(name, function, capsys):
    assert said(capsys, name, function).startswith("✓")


WRONG = [
    ("decode_bytes", lambda w, b, t, c, k: 0.0, "you give 0, expected"),
    ("compute_bound_batch", lambda bits, bw, peak: bw / peak, "23,170 times too small"),
    ("speedup_bound", lambda w, b, rest: 3.76, "you give 3.76, expected 3.15"),
    ("kernel_nibbles", lambda p: p & 15, "wrong shape of the codes: got (4, 3), expected (8, 3)"),
    ("w4_tile", lambda x, c, s: (x @ c) * s, "raises TypeError"),
    ("w4_tile", lambda x, c, s: c * 1.0, "wrong shape of the y: got (8, 3), expected (5, 3)"),
    ("dequantize_tile", returned, "a kernel returns nothing, it writes"),
    ("dequantize_tile", lambda codes, scale: None, "arguments (codes_ref, scale_ref, w_ref)"),
    ("dequantize_tile", unread, "read a reference with ref[...]"),
    ("dequantize_tile", unread_scale, "read a reference with ref[...]"),
    ("dequantize_tile", not_written, "nothing was written to w_ref"),
    ("dequantize_tile", without_a_cast, "Value dtype: int8"),
    ("e4m3_value", lambda code: code / 8, "numbers differ"),
    ("to_e4m3", lambda x, s: (x / s).astype(jnp.float8_e4m3fn), "multiply by it again"),
    ("power_scales", lambda w: 2.0 ** jnp.floor(jnp.log2(jnp.abs(w).max(-1)) - 2),
     "return floor and rceil, 2 in all"),
    ("power_scales", lambda w: (abs(w).max() / 4, abs(w).max() / 6), "got (), expected (24,)"),
    ("floor_and_rceil", lambda w, f, r: (0.0, 0.0), "3 in all; your function returns 2"),
    ("floor_and_rceil", lambda w, f, r: (w - f, w - r, abs(w) > 6 * f), "raises"),
    ("nvfp4_bits", lambda n, m: 4 + 16 / 16, "you give 5, expected 4.50391"),
    ("four_or_six", lambda w, six, four: four < six, "every block chooses for itself"),
    ("nf4_levels", lambda offset: jnp.linspace(-offset, offset, 16), "numbers differ"),
    ("nf4_levels", lambda offset: jnp.zeros(15), "got (15,), expected (16,)"),
    ("unpack_nibbles", lambda raw: raw.reshape(2, 8), "got (2, 8), expected (32,)"),
    ("q4_0_scale", lambda w: jnp.abs(w).max() / -8, "got (), expected (3,)"),
    ("q4_0_scale", lambda w: jnp.abs(w).max(-1, keepdims=True) / 8, "leave keepdims out"),
    ("best_scale", lambda w, q, v: jnp.abs(w).max() / 8, "you give"),
    ("best_scale", lambda w, q, v: w / q, "got (32,), expected ()"),
    ("scale_min_k4", lambda raw: raw[:8] & 63, "return scales and minima, 2 in all"),
    ("requantize", lambda w, d, s, dmin, m: jnp.round((w + dmin * m) / (d * s)),
     "on three sub-blocks your function raises"),
    ("use_more_bits", lambda layers: layers % 3 == 2, "got (), expected (32,)"),
    ("bits_of_mixture", lambda weights, bits: 5.0, "you give 5, expected"),
    ("merged", lambda ha, na, hb, nb: ha * na / (na + nb), "numbers differ"),
    ("paired", lambda a, b: (b - a).mean(), "return difference and standard error, 2 in all"),
    ("verdict", lambda v, b: v if abs(v) > 2 * b else 0, "for arrays there are jnp.max"),
    ("percentile_range", lambda x, q: (-jnp.abs(x).max(), jnp.abs(x).max()), "13.48 times"),
    ("shrink", lambda x, beta, p: x, "numbers differ"),
    ("zero_update", lambda q, w, e, s: (q - (w - e) / s[:, None]), "got (3, 8), expected (3,)"),
    ("windows_needed", lambda inputs, context: 6, "the same answer again"),
    # name, answer, what must be said
    ("int_matmul", lambda qx, qw, sx, sw: (qx @ qw.T).astype(jnp.int32) * sx * sw.T, "wrapped"),
    ("int_matmul", lambda qx, qw, sx, sw: qx @ qw.T * sx, "numbers differ"),
    ("int8_token", lambda x: jnp.round(x / jnp.abs(x).max() * 127), "codes and scale, 2 in all"),
    ("int8_token", lambda x: (jnp.round(127 * x / abs(x).max(-1)[:, None]), abs(x).max(-1) / 127),
     "got (4,), expected (4, 1)"),
    ("smooth_scales", lambda a, ws, r: a**r / abs(ws).max(0) ** (1 - r), "raises TypeError"),
    ("smooth_fold", lambda g, b, w, s: (g / s, w * s), "gain and bias and weights, 3 in all"),
    ("outlier_channels", lambda x, t: abs(x).max(0), "numbers differ"),
    ("mixed_product", lambda x, qw, sw, o: jnp.where(o, 0, x) @ (qw * sw).T, "numbers differ"),
    ("effective_levels", lambda x: jnp.full(6, 255), "every channel has its own scale here"),
    ("push", lambda w, u, j, q: w[:, j + 1 :], "wrong shape of the weights"),
    ("push", lambda w, u, j, q: w.at[:, j].set(0.0), "numbers differ"),
    ("output_loss", lambda w, q, h: (w - q) @ h @ (w - q).T, "got (3, 3), expected ()"),
    ("errors", lambda w, q, u: jnp.linalg.inv(u) @ (w - q), "raises TypeError"),
    ("scaled_u", lambda u, factor: u / 2, "right on 1 of 3 cases"),
    ("scale", lambda w: jnp.abs(w).max(-1) / 7, "got (4,), expected (4, 1): keepdims=True"),
    ("scale", lambda w: jnp.abs(w).max(-1) / 15, "got (4,), expected (4, 1)"),  # the shape first
    ("scale", lambda w: 0.1, "got (), expected (4, 1): one number for everything"),
    ("scale", lambda w: (jnp.abs(w).max(-1, keepdims=True) / 7).T, "rows and columns"),
    ("scale", lambda w: -jnp.abs(w).max(-1, keepdims=True) / 7, "wrong sign"),
    ("scale", lambda w: jnp.abs(w).max(-1, keepdims=True) / 6, "everywhere 1.167 times too large"),
    ("scale", lambda w: jnp.abs(w).max(-1, keepdims=True) / 9, "everywhere 1.286 times too small"),
    ("scale", lambda w: 7 / (7 / jnp.abs(w).max(-1, keepdims=True)) / 7 + 0.1, "0.1 too large"),
    ("scale", lambda w: w.amax(-1), "on 4 rows of 16 weights your function raises AttributeError"),
    ("scale", lambda: 1, "called with the arguments (w), which it does not take"),
    ("scale", lambda w: "small", "returns str, not numbers"),
    ("scale", lambda w: (1.0, 2.0), "return scale, 1 in all; your function returns 2"),
    ("scale", 0.5, "give the function itself"),
    ("codes", lambda w, s: jnp.round(w / s) + 0 * w, "beyond 7"),  # two mistakes: the first alone
    ("codes", lambda w, s: jnp.clip(w / s, -8, 7).astype(int), "cuts towards zero"),
    ("codes", lambda w, s: jnp.clip(jnp.round(w / (s + 1e-3)), -8, 7), "numbers differ"),
    ("zero_point", lambda w: w.min(-1, keepdims=True), "return scale and zero point, 2 in all"),
    ("zero_point", lambda w: (None, None), "not numbers"),
    ("memory", lambda p, b: 140, "the same answer again: does it use its arguments?"),
    ("memory", lambda p, b: round(p * b / 8e9), "you give 4, expected 3.9375"),
    ("kv_cache", lambda n, h, d, t, b: 3 * n * h * d * t * b / 8, "1.5 times too large"),
    ("codes", lambda w, s: jnp.round(jnp.clip(w, -8, 7) / s), "clip the codes"),
    ("scale", lambda w: max(abs(w)) / 7, "for arrays there are jnp.max"),
    ("lost", lambda w: (abs(w) < abs(w).max(1) / 2).mean(1), "keepdims=True a maximum keeps"),
    ("lost", lambda w: (abs(w) <= abs(w).max(1, keepdims=True) / 2).mean(1, keepdims=True),
     "leave keepdims out"),
    ("relative_error", lambda w, v: w - v, "one number was asked for"),
    ("group_scale", lambda w, g: jnp.abs(w).reshape(len(w), -1, g).max(-1) / 7,
     "right on 3 of 4 cases, but on rows of 10 weights in groups of 4, so that the last has 2 "
     "your function raises TypeError"),
    ("relative_error", lambda w, v: right_error(w, v) if (w != v).any() else None,
     "on weights that did not change your function returns nothing"),
]  # fmt: skip


@pytest.mark.parametrize("name, function, words", WRONG)
def test_a_beginners_answers(name, function, words, capsys):
    text = said(capsys, name, function)
    assert words in text and text.startswith("○"), text


def test_nan_is_named(capsys):
    def own_epsilon(w, s):
        return jnp.clip(jnp.round(w / s), -8, 7).at[0, 0].add(0 / s[-1, 0])

    assert "you return NaN for an all-zero row" in said(capsys, "codes", own_epsilon)


def test_a_verdict_does_not_depend_on_the_run():
    wrong = [judge(ALL["scale"], lambda w: jnp.abs(w).max(-1, keepdims=True) / 6) for _ in "ab"]
    assert wrong[0] == wrong[1]


def test_hints_lead_to_the_solution(capsys):
    for name, exercise in ALL.items():
        for number in range(1, len(exercise.hints) + 1):
            exercises.hint(name, number)
        assert f"solution({name!r})" in capsys.readouterr().out.splitlines()[-1]
        exercises.solution(name)
        assert f"def {name}(" in capsys.readouterr().out


def test_unknown_names_are_told_apart():
    with pytest.raises(ValueError, match="did you mean 'zero_point'"):
        exercises.check("zeropoint", print)
    with pytest.raises(ValueError, match="known are memory"):
        exercises.solution("%%%%")
    with pytest.raises(ValueError, match="has 2 hints, there is no number 3"):
        exercises.hint("scale", 3)


def test_examples_of_the_module():
    found = doctest.testmod(exercises)
    assert found.attempted >= 3 and found.failed == 0


def test_the_table_of_groups_is_what_the_modules_hold():
    """An exercise that is not in the table cannot be asked for."""
    for group, names in exercises._GROUPS.items():
        module = importlib.import_module(f"qlab.exercises.{group}")
        assert names.split() == [one.name for one in getattr(module, group.upper())]
    folder = Path(exercises.__file__).parent
    others = {"__init__", "judge", "solutions"}
    assert {f.stem for f in folder.glob("*.py")} - others == set(exercises._GROUPS)


def test_one_exercise_costs_one_module():
    """Making the cases of all takes many seconds."""
    code = (
        "import sys, qlab.exercises as e; e.hint('bits'); "
        "print(*(m for m in sys.modules if m.startswith('qlab.exercises.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "qlab.exercises.start" in loaded and "qlab.exercises.gptq" not in loaded
