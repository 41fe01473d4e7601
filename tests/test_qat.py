"""Quantization-aware training: gradients against their equations and torch, prepared against
converted models, runs that are killed, split over devices, or refused."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qlab.activations import Act
from qlab.evaluation import evaluate
from qlab.formats import INT4, NF4, UINT8
from qlab.methods import qat as estimators
from qlab.methods.trained import LearnedClip, LearnedStep, Trained
from qlab.models.generate import generate
from qlab.models.kv import kivi, quantize_kv
from qlab.models.objective import Mix, batch_loss
from qlab.models.prepare import convert, prepare
from qlab.models.qat import qat, qat_steps
from qlab.models.surgery import linears
from qlab.models.train_state import trainable
from qlab.models.transformer import Linear
from qlab.qtensor import QTensor, Spec, dequantize, quantize
from qlab.specs import SPECS
from tests.killed_training import TEXT
from tests.killed_training import run as killable
from tests.models_for_tests import CONFIG, random_model, tokens_for

ROOT = Path(__file__).resolve().parent.parent
MODEL = random_model(scale=2.0)
WIDE = dataclasses.replace(
    CONFIG, hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1
)
GOLDEN = np.load(ROOT / "tests" / "golden" / "qat.npz")
G = jnp.asarray(GOLDEN["g"])
W = jnp.asarray(GOLDEN["w"])


def pulled(function, *primals):
    """The value, and the gradients of Σ g ⊙ value."""
    value, back = jax.vjp(function, *primals)
    return value, back(G)


# ---- gradients -----------------------------------------------------------------------------------


def by_row(w, scale):
    return quantize(w, QTensor(None, scale, None, None, spec=Spec(INT4)))


def test_clipped_is_torchs_fake_quantize():
    scale = jnp.asarray(GOLDEN["scale"])
    value, (dw,) = pulled(lambda w: estimators.clipped(w, by_row(w, scale)), W)
    np.testing.assert_allclose(value, GOLDEN["channel.y"], rtol=1e-6)
    np.testing.assert_array_equal(dw, GOLDEN["channel.dw"])
    assert (np.asarray(dw) == 0).mean() > 0.01  # something is clipped
    _, (through,) = pulled(lambda w: estimators.ste(w, by_row(w, scale)), W)
    np.testing.assert_array_equal(through, G)


def test_lsq_is_the_papers():
    def value(w, step):
        return estimators.lsq(w, {"step": step}, by_row(w, jax.lax.stop_gradient(step)))

    y, (dw, ds) = pulled(value, W, jnp.asarray(GOLDEN["scale"]))
    np.testing.assert_allclose(y, GOLDEN["lsq.y"], rtol=1e-6)
    np.testing.assert_array_equal(dw, GOLDEN["lsq.dw"])
    np.testing.assert_allclose(ds, GOLDEN["lsq.ds"], rtol=1e-4, atol=1e-5)


def test_lsq_is_torchs_learnable_step_but_for_the_last_half_step():
    """torch counts a weight as inside until it rounds beyond the end, the paper until the end."""
    step = jnp.full((1, 1), 0.2)
    spec = Spec(INT4, "tensor")

    def value(w, step):
        q = quantize(w, QTensor(None, jax.lax.stop_gradient(step), None, None, spec=spec))
        return estimators.lsq(w, {"step": step}, q)

    y, (dw, ds) = pulled(value, W, step)
    np.testing.assert_allclose(y, GOLDEN["tensor.y"], rtol=1e-6)
    u = np.asarray(W) / 0.2
    band = ((u >= 7) & (u < 7.5)) | ((u <= -8) & (u >= -8.5))
    np.testing.assert_array_equal(np.asarray(dw)[~band], GOLDEN["tensor.dw"][~band])
    ends = np.where(u > 0, 7, -8)
    differs = np.sum((np.asarray(G) * (ends - (ends - u)))[band])  # paper's slope less torch's
    mine = float(ds[0, 0]) * np.sqrt(W.size * 7)
    assert band.any()
    np.testing.assert_allclose(mine - differs, GOLDEN["tensor.ds"][0], rtol=1e-3)


def test_pact_is_the_papers():
    spec = Spec(UINT8, "tensor")

    def value(x, alpha):
        return estimators.pact(x, alpha, quantize(x, estimators.pact_ranges(alpha, spec)))

    y, (dx, dalpha) = pulled(value, W, jnp.float32(1.5))
    np.testing.assert_allclose(y, GOLDEN["pact.y"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(dx, GOLDEN["pact.dx"])
    np.testing.assert_allclose(dalpha, GOLDEN["pact.dalpha"], rtol=1e-5)


@pytest.mark.parametrize("name", ["int4_g64", "uint4_g64", "nf4", "mxfp4", "q4_k", "nvfp4"])
def test_lsq_agrees_with_finite_differences(name):
    """∂ŵ/∂s and ∂ŵ/∂o of s·clip(u + r) − what rounding adds, r, held fixed; the scales are float32,
    so that storing them is no step."""
    spec = SPECS[name]
    free = dataclasses.replace(
        spec, scale="float32", offset=None if spec.offset is None else "float32"
    )
    w = jax.random.normal(jax.random.key(0), (4, 256))
    learned = estimators.lsq_start(w, free)
    learned["step"] = learned["step"] * 0.6  # some weights lie beyond the ends
    q = quantize(w, estimators.stored(learned, free))
    g = jax.random.normal(jax.random.key(1), w.shape)
    (found,) = jax.grad(lambda x: jnp.sum(g * estimators.lsq(w, x[0], q)))((learned,))
    sizes = estimators.block_sizes(free.block, w.shape)

    def smooth(change):
        with jax.enable_x64(True):
            now = {k: np.float64(v) + change.get(k, 0.0) for k, v in learned.items()}
            full = {k: np.float64(estimators.spread(jnp.asarray(v), sizes, w.shape))
                    for k, v in now.items()}  # fmt: skip
            old = {k: np.float64(estimators.spread(jnp.asarray(v), sizes, w.shape))
                   for k, v in learned.items()}  # fmt: skip
        zero = full.get("zero", 0.0)
        low, high = free.format.min - zero, free.format.max - zero
        at = lambda p: (np.float64(w) - p.get("offset", 0.0)) / p["step"]  # noqa: E731
        u, c = at(old), np.float64(free.format.decode(q.codes)) - zero
        inside = (low < u) & (u < high)
        return np.where(inside, at(full) + (c - u), c) * full["step"] + full.get("offset", 0.0)

    block = (1, 2)
    steepness = 1 / np.sqrt(estimators.sharing(free, w.shape) * free.format.max)
    for field in {"step", "offset"} & set(learned):
        bump = np.zeros(learned[field].shape)
        bump[block] = 1e-6
        slope = (smooth({field: bump}) - smooth({field: -bump})) / 2e-6
        expected = steepness * np.sum(np.float64(g) * slope)
        np.testing.assert_allclose(found[field][block], expected, rtol=2e-3, atol=1e-4)


def test_lsq_begins_at_the_papers_step():
    w = jax.random.normal(jax.random.key(0), (4, 128))
    step = estimators.lsq_start(w, SPECS["int4_g64"])["step"]
    expected = 2 * np.abs(np.asarray(w)).reshape(4, 2, 64).mean(-1) / np.sqrt(7)
    np.testing.assert_allclose(step, expected, rtol=1e-5)
    ragged = estimators.lsq_start(w[:3, :100], Spec(INT4, (2, 64)))["step"]
    np.testing.assert_allclose(
        ragged[1, 1], 2 * np.abs(np.asarray(w)[2, 64:100]).mean() / np.sqrt(7), rtol=1e-5
    )


def test_a_learned_step_of_inputs_is_the_papers():
    """∂x̂/∂s = c − u inside and the end beyond, ∂x̂/∂x = 1 inside and 0 beyond; N is all numbers of
    the sequence (eqs. 3 and 5, §2.2)."""
    step, spec = jnp.float32(0.2), Spec(INT4, "tensor")
    y, (dx, dstep) = pulled(lambda x, s: LearnedStep(s, spec).value(x), W, step)
    u, g = np.asarray(W, np.float64) / 0.2, np.asarray(G, np.float64)
    c = np.clip(np.round(u), -8, 7)
    inside = (-8 < u) & (u < 7)
    assert 0 < (~inside).sum() < inside.sum()
    np.testing.assert_allclose(y, 0.2 * c, rtol=1e-5)
    np.testing.assert_array_equal(dx, np.where(inside, G, 0))
    slope = np.sum(g * np.where(inside, c - u, c)) / np.sqrt(W.size * 7)
    np.testing.assert_allclose(dstep, slope, rtol=1e-3)


def test_which_method_trains_which_spec():
    counts = {m: sum(estimators.supports(m, s) for s in SPECS.values()) for m in
              estimators.ESTIMATORS}  # fmt: skip
    everything = len(SPECS)
    assert counts == {
        "ste": everything, "clipped": everything, "lsq": everything, "pact": everything, "bitnet": 1
    }  # fmt: skip
    with pytest.raises(ValueError, match="'lsq' cannot train spec .*NF4.*: it has no scale"):
        estimators.check("lsq", Spec(NF4, scale=None))
    with pytest.raises(ValueError, match="'bitnet' cannot train spec 'tq2_0'"):
        estimators.check("bitnet", SPECS["tq2_0"])


# ---- prepare equals convert ----------------------------------------------------------------------

_apply = jax.jit(lambda layer, x: layer(x))
X = jax.random.normal(jax.random.key(5), (2, 3, 256))


def same(before, after):
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("method", ["ste", "lsq"])
@pytest.mark.parametrize("name", SPECS)
def test_a_trained_weight_multiplies_as_what_it_becomes(name, method):
    w = jax.random.normal(jax.random.key(7), (8, 256)) * 0.05
    learned = estimators.lsq_start(w, SPECS[name]) if method == "lsq" else {}
    weight = Trained(w, learned, SPECS[name], method)
    q = jax.jit(lambda weight: weight.quantized())(weight)
    same(weight.value(), dequantize(q))
    same(Linear(weight)(X), Linear(q)(X))
    same(_apply(Linear(weight), X), _apply(Linear(q), X))


MODELS = ["int2_g64", "int4_channel", "uint4_g64", "nf4_double", "mxfp4", "fp8_channel"]
PAIRS = [("int4_channel", "int8_token"), ("int8_channel", "uint8_tensor"), ("nf4", "fp8_token"),
         ("int8_channel", "llm_int8")]  # fmt: skip
INT4_STATIC = Act(Spec(INT4, "tensor"), static=True)
STEPS = {"lsq": LearnedStep, "pact": LearnedClip}


@pytest.mark.parametrize(
    ("name", "act", "method"),
    [(name, None, "lsq") for name in MODELS]
    + [(name, act, "clipped") for name, act in PAIRS]
    + [("bitnet", None, "bitnet")],
)
def test_prepare_equals_convert(name, act, method):
    prepared = prepare(MODEL, name, method=method, act=act)
    converted = convert(prepared)
    tokens = tokens_for(MODEL)
    same(prepared(tokens), converted(tokens))
    whole = jax.jit(lambda model, tokens: model(tokens))
    same(whole(prepared, tokens), whole(converted, tokens))
    if method == "bitnet":
        assert all(layer.act is not None for layer in linears(converted).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_prepare_equals_convert_for_every_spec(name):
    """A whole model whose rows hold a super-block; steps are learned, which is more than `ste`."""
    prepared = prepare(random_model(WIDE, scale=2.0), name, method="lsq")
    tokens = tokens_for(prepared)
    whole = jax.jit(lambda model, tokens: model(tokens))
    same(whole(prepared, tokens), whole(convert(prepared), tokens))


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("act", ["int8_static", "fp8_static", INT4_STATIC])
def test_learned_inputs_become_static_ones(act, method):
    """Trained for a few steps: what is learned moves, and the codes that come out are its own."""
    heard = []
    q = short(spec="int4_channel", act=act, method=method, step_rate=0.05, teacher=MODEL,
              callback=lambda step, loss, model: heard.append(model))  # fmt: skip
    path = "layers.0.mlp.down_proj"
    first, last = (linears(m)[path].act for m in (heard[0], heard[-1]))
    assert isinstance(first, STEPS[method]) and isinstance(last, STEPS[method])
    if method == "lsq":  # at 8 bits nothing lies beyond α, and it rests
        assert float(first.step) != float(last.step)
    kept = linears(q)[path].act
    assert kept.static and kept.ranges is not None
    same(heard[-1](TEXT[:2]), q(TEXT[:2]))


def test_a_prepared_model_is_an_ordinary_one():
    prepared = prepare(MODEL, {"*.mlp.*": "int3_g64"}, method="lsq")
    converted = convert(prepared)
    assert generate(prepared, "the", max_new_tokens=4) == generate(
        converted, "the", max_new_tokens=4
    )
    text = {"own": "the end of the beginning is in a thesis " * 20}
    mine = evaluate(prepared, texts=text, context=32, tokens=128, progress=False)
    other = evaluate(converted, texts=text, context=32, tokens=128, progress=False)
    assert mine.texts[0].ppl == other.texts[0].ppl
    assert isinstance(linears(prepared)["layers.0.self_attn.q_proj"].weight, jax.Array)
    again = prepare(prepared, "int2_g64")  # the weights beneath, not what they round to
    path = "layers.1.mlp.up_proj"
    same(linears(again)[path].weight.w, linears(MODEL)[path].weight)


def test_inputs_pass_their_gradients():
    """dx̂ = g ŵ and dŵ = gᵀ x̂ of the very product that the converted layer computes."""
    from qlab.activations import ACTS, quantized_inputs

    w = jax.random.normal(jax.random.key(7), (8, 32)) * 0.05
    x, g = X[..., :32], jax.random.normal(jax.random.key(9), (2, 3, 8))
    layer = Linear(Trained(w, {}, SPECS["int4_channel"], "ste"), None, ACTS["int8_token"])

    def value(x, w):
        weight = dataclasses.replace(layer.weight, w=w)
        return Linear(weight, None, layer.act)(x)

    y, back = jax.vjp(value, x, w)
    dx, dw = back(g)
    w_hat = layer.weight.value()
    x_hat = jnp.stack([quantized_inputs(one, layer.act) for one in x])
    np.testing.assert_allclose(dx, g @ w_hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dw, jnp.einsum("bto,bti->oi", g, x_hat), rtol=1e-4, atol=1e-5)


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("taught", [False, True])
def test_the_fast_loss_is_the_plain_one(taught):
    teacher = random_model(seed=1, scale=2.0) if taught else None
    rows = tokens_for(MODEL, 3, 41)
    weights = jnp.ones((3, 40)).at[2, 20:].set(0.0) / 100
    mix = Mix(*map(jnp.float32, (0.3, 0.7, 2.0)))

    def plain(model):
        logits = model(rows[:, :-1])
        log_p = jax.nn.log_softmax(logits)
        each = -jnp.take_along_axis(log_p, rows[:, 1:, None], -1)[..., 0]
        if teacher is not None:
            log_s = jax.nn.log_softmax(logits / 2)
            log_t = jax.nn.log_softmax(teacher(rows[:, :-1]) / 2)
            each = 0.3 * each + 0.7 * 4 * jnp.sum(jnp.exp(log_t) * (log_t - log_s), -1)
        return jnp.sum(each * weights)

    want, slope = jax.value_and_grad(plain)(MODEL)
    got, mine = jax.value_and_grad(lambda m: batch_loss(m, rows, weights, mix, teacher))(MODEL)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)


# ---- runs ----------------------------------------------------------------------------------------


def short(model=MODEL, spec="int2_g64", text=TEXT, **settings):
    how = {"steps": 3, "batch": 4, "progress": False, **settings}
    return qat(model, spec, text, **how)


def test_training_lowers_the_loss_and_says_what_it_did():
    heard = []
    q = short(teacher=MODEL, method="lsq", steps=30, learning_rate=3e-3,
              callback=lambda step, loss, model: heard.append((step, loss, model)))  # fmt: skip
    found = q.label.provenance
    losses = found["loss"]["steps"]
    assert found["loss"]["end"] < 0.7 * found["loss"]["start"]
    assert found["method"] == "qat lsq" and found["hyper"]["steps"] == 30
    assert found["tokens"] == 30 * 4 * 16 and found["hyper"]["seed"] == 0
    assert {"optax", "jax"} <= set(found["versions"]) and found["teacher"]["name"] == "random"
    assert [step for step, _, _ in heard] == list(range(1, 31))
    np.testing.assert_allclose([loss for _, loss, _ in heard], losses, atol=1e-6)
    same(heard[-1][2](TEXT[:2]), q(TEXT[:2]))  # what was trained is what came out
    assert "trained by lsq for 30 steps on 1,920 tokens (random as teacher)" in str(q.report)
    assert all(isinstance(layer.weight, QTensor) for layer in linears(q).values())
    json.dumps(found)


def test_the_generator_may_be_left_and_bits_changed():
    first = qat_steps(MODEL, "int4_g64", TEXT, steps=5, batch=4)
    now, kept = next(first), next(first)
    first.close()
    assert (now.step, kept.step, kept.tokens) == (1, 2, 128)
    assert np.isfinite(now.model(TEXT[:1])).all()  # outlives the next step
    after = next(qat_steps(kept.model, "int2_g64", TEXT, steps=5, batch=4))
    kinds = {layer.weight.spec for layer in linears(convert(after.model)).values()}
    assert kinds == {SPECS["int2_g64"]}


def test_order_follows_from_seed_and_step_alone():
    one = short(steps=6).label.provenance["loss"]["steps"]
    assert one == short(steps=6).label.provenance["loss"]["steps"]
    assert one != short(steps=6, seed=1).label.provenance["loss"]["steps"]


def test_an_optimizer_of_ones_own():
    q = short(optimizer=optax.sgd(0.0))
    path = "layers.0.mlp.up_proj"
    same(linears(q)[path].weight.codes, quantize(linears(MODEL)[path].weight,
                                                 SPECS["int2_g64"]).codes)  # fmt: skip


def test_only_what_can_move_is_trained():
    prepared = prepare(MODEL, "uint4_g64", method="lsq", skip="*.o_proj")
    names = set(trainable(prepared))
    assert "layers.0.mlp.up_proj.weight.learned.step" in names
    assert "layers.0.mlp.up_proj.weight.learned.zero" not in names
    assert {"layers.0.self_attn.o_proj.weight", "embed_tokens.weight", "norm.weight"} <= names


def test_refusals():
    def refuse(sentence, **settings):
        with pytest.raises(ValueError, match=sentence):
            short(**settings)

    refuse("320 tokens are 20 sequences, fewer than one batch of 32|340 tokens are", batch=32)
    refuse("method 'lqs' is unknown: did you mean 'lsq'", method="lqs")
    refuse("layers.0.self_attn.q_proj: method 'bitnet' cannot train spec 'int2_g64'",
           method="bitnet")  # fmt: skip
    refuse("'pact' trains the clip of inputs: act=", method="pact")
    refuse("'pact' learns one α a layer", method="pact", act="int8_token")
    refuse("a batch of 4 is not a multiple of 3 devices", devices=jax.devices() * 3)
    refuse(r"devices=\[\] are none", devices=[])
    refuse("kd=2 is not a share", kd=2)
    refuse("kd=0.5 weighs a teacher's loss: teacher= is not given", kd=0.5)
    refuse(r"teacher='tiny' is a name: qlab.load\('tiny'\)", teacher="tiny")
    refuse("learning_rate='1e-3' is not a number", learning_rate="1e-3")
    refuse("weight_decay=-1 is negative", weight_decay=-1)
    refuse("steps=0 is not a whole number", steps=0)


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    """Weights that grow without bound; the last checkpoint stays."""
    with pytest.raises(ValueError, match=r"step \d+: .* the checkpoint of step \d+ is kept"):
        short(optimizer=optax.sgd(-1e30), steps=40, checkpoint=tmp_path / "run", every=1)
    assert list((tmp_path / "run").glob("step-*"))


# ---- killed and resumed --------------------------------------------------------------------------


def test_a_stopped_run_goes_on_to_the_same_codes(tmp_path):
    whole = killable()
    folder = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(step, loss, model):
        if step == 7:
            raise Stop

    with pytest.raises(Stop):
        short_stop(folder, stop)
    (folder / "step-00000009.orbax-checkpoint-tmp-1").mkdir()  # as if killed while writing
    resumed = killable(folder)
    assert resumed.label.provenance["loss"] == whole.label.provenance["loss"]
    for path, layer in linears(resumed).items():
        same(layer.weight.codes, linears(whole)[path].weight.codes)
    again = killable(folder)  # finished: read, not trained
    assert again.label.provenance["loss"] == whole.label.provenance["loss"]
    with pytest.raises(ValueError, match="holds another run: hyper.seed was 0, is 1"):
        killable(folder, seed=1)
    with pytest.raises(ValueError, match="text.sha256 was"):
        killable(folder, text=TEXT[::-1])


def test_two_runs_do_not_share_a_folder(tmp_path):
    def second(step, loss, model):
        with pytest.raises(ValueError, match="another run is using the folder .*run"):
            killable(tmp_path / "run")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short_stop(tmp_path / "run", second)
    assert killable(tmp_path / "run")  # what was interrupted has let go


def short_stop(folder, stop):
    return qat(random_model(scale=2.0), "int4_g32", TEXT, checkpoint=folder, callback=stop,
               method="lsq", steps=12, every=3, batch=4, progress=False)  # fmt: skip


def begin(folder: Path, output: Path) -> subprocess.Popen:
    code = [sys.executable, "-m", "tests.killed_training", str(folder), str(output)]
    return subprocess.Popen(code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_killed_runs_give_the_same_bytes(tmp_path):
    assert begin(tmp_path / "calm", tmp_path / "whole").wait() == 0
    folder, output = tmp_path / "run", tmp_path / "resumed"
    for step in (3, 6):
        process = begin(folder, output)
        while not (folder / f"step-{step:08d}").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert begin(folder, output).wait() == 0
    for name in ("whole", "resumed"):
        assert (tmp_path / f"{name}.json").exists()
    losses = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "resumed")]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    for file in ("model.safetensors", "qlab.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (output / file).read_bytes()


# ---- many devices --------------------------------------------------------------------------------

MANY = """
import jax, json, sys
from tests.killed_training import run
from tests.models_for_tests import CONFIG, random_model
assert len(jax.devices()) == 8
for devices in (None, jax.devices()[:1]):
    q = run(steps=4, batch=8, devices=devices, teacher=random_model(seed=1, scale=2.0))
    print(json.dumps(q.label.provenance["loss"]["steps"]))
"""


def test_a_batch_split_over_eight_devices_gives_the_same_losses():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", MANY], cwd=ROOT, env={**os.environ, **flags},
                          text=True, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    many, one = (json.loads(line) for line in done.stdout.strip().splitlines())
    np.testing.assert_allclose(many, one, rtol=2e-4)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"every": 0}, "every=0"),
        ({"seed": -1}, "seed=-1"),
        ({"step_rate": -1.0}, "step_rate=-1.0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_before_a_step(change, words):
    with pytest.raises(ValueError, match=words):
        qat(MODEL, "int4_channel", TEXT, steps=1, progress=False, **change)


def test_a_quantized_cache_is_not_trained_through():
    with pytest.raises(ValueError, match="keys and values in float"):
        prepare(quantize_kv(MODEL, kivi(8, group=8)), "int4_channel")
