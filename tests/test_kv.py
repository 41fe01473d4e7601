"""The quantized cache: what is read when, codes equal however tokens come, bytes as packed, and
the same numbers in scoring and generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.formats import UINT2, UINT4, UINT6
from qlab.models import KV, KVS, cache_size, kivi, quantize_kv, surgery, transformer
from qlab.models.generate import generate_tokens
from qlab.models.kv import KVCache, Side, Store, back, coded, find, name_of, over_sequence, turned
from qlab.models.provenance import weights_hash
from qlab.qtensor import Spec, quantize
from qlab.rules import minmax
from tests.models_for_tests import CONFIG, OPT_CONFIG, random_model, tokens_for

MODEL, OPT = random_model(), random_model(OPT_CONFIG)
SMALL = kivi(2, group=16, window=16)  # head_dim of the models is 16
RECIPES = [
    SMALL,
    kivi(4, group=8, window=0),
    kivi(8, group=16, window=32, keys_by="token"),
    kivi(2, group=8, window=24, values_by="channel"),
    SMALL.replace(values=None),
    SMALL.replace(keys=None, window=5),
]


def heads(time: int, seed: int = 0, kv_heads: int = 2, d: int = 16) -> tuple:
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((2, time, 4, d), (2, time, kv_heads, d), (2, time, kv_heads, d))
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes))


def by_hand(q, k, v, kv) -> np.ndarray:
    """Query by query: the cache as the tokens before left it, codes of whole blocks by numpy."""

    def codes(x, spec):  # x (..., block): numbers that share a scale
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        levels = spec.format.max
        scale = np.float32(np.float16((high - low) / levels))
        low = np.float32(np.float16(low))
        return np.clip(np.rint((x - low) / np.where(scale == 0, 1, scale)), 0, levels) * scale + low

    def seen(x, side, t):  # (time, d) -> what query t reads of it
        x = x[: t + 1].copy()
        closed = 0 if side.spec is None else side.closed(t)
        if closed and side.by == "channel":
            part = x[:closed].T.reshape(x.shape[1], -1, side.spec.block)
            x[:closed] = codes(part, side.spec).reshape(x.shape[1], -1).T
        elif closed:
            part = x[:closed].reshape(closed, -1, side.spec.block)
            x[:closed] = codes(part, side.spec).reshape(closed, -1)
        return x

    q, k, v = (np.asarray(x) for x in (q, k, v))
    y, d = np.zeros_like(q), q.shape[-1]
    for b, t, h in np.ndindex(q.shape[:3]):
        own = h // (q.shape[2] // k.shape[2])
        keys, values = seen(k[b, :, own], kv.key_side, t), seen(v[b, :, own], kv.value_side, t)
        score = keys @ q[b, t, h] / d**0.5
        weight = np.exp(score - score.max())
        y[b, t, h] = weight @ values / weight.sum()
    return y


# ---- what is read when


@pytest.mark.parametrize("kv", RECIPES, ids=name_of)
def test_a_whole_sequence_is_what_each_query_reads(kv):
    """Against numpy, query by query; grouped queries, an open last group, 61 tokens."""
    q, k, v = heads(61)
    found = jax.jit(over_sequence, static_argnums=3)(q, k, v, kv)
    np.testing.assert_allclose(found, by_hand(q, k, v, kv), atol=2e-5)


def test_long_sequences_are_cut_into_the_same():
    """More than 128 queries are computed in parts; the parts agree with numpy."""
    kv = kivi(2, group=16, window=32)
    q, k, v = heads(300, kv_heads=4)
    q, k, v = (x[:1, :, :1] for x in (q, k, v))
    np.testing.assert_allclose(over_sequence(q, k, v, kv), by_hand(q, k, v, kv), atol=2e-5)


@given(st.integers(0, 700), st.integers(0, 5), st.sampled_from([8, 16, 32]))
def test_windows_hold_what_they_promise(stored, groups, block):
    """Values: exactly the last `window` are float. Keys: whole groups close, never the last
    fewer than a window at once, and what is open fits the ring."""
    spec, window = Spec(UINT2, block, "float16", offset="float16", rule=minmax), groups * block
    keys, values = Side(spec, "channel", window), Side(spec, "token", window)
    assert values.closed(stored) == max(0, stored - window)
    assert keys.closed(stored) % keys.kept == 0
    assert 0 <= stored - keys.closed(stored) < keys.kept
    assert keys.closed(stored + 1) >= keys.closed(stored)
    assert keys.bits(stored + 1) >= keys.bits(stored)


# ---- token by token


@pytest.mark.parametrize("kv", RECIPES, ids=name_of)
def test_codes_do_not_depend_on_how_tokens_came(kv):
    """Codes and ranges of closed tokens are those of the whole sequence, bit for bit, and every
    step's output is the whole's; padding behind the real tokens changes nothing."""
    q, k, v = heads(61)
    whole = over_sequence(q, k, v, kv)
    step = jax.jit(lambda c, q, k, v, start, count: c.attend(q, k, v, start, count))
    for cuts, padding in (([0, 61], 0), ([0, 40, 61], 7), ([0, 5, 6, 7, 30, 61], 3)):
        cache, out = KVCache.empty(kv, 2, 80, 2, 16), []
        for a, b in zip(cuts, cuts[1:]):
            pad = min(padding, 80 - b)
            rows = [jnp.pad(x[:, a:b], [(0, 0), (0, pad), (0, 0), (0, 0)], constant_values=9.0)
                    for x in (q, k, v)]  # fmt: skip
            y, cache = step(cache, *rows, jnp.int32(a), jnp.int32(b - a))
            out.append(y[:, : b - a])
        np.testing.assert_allclose(jnp.concatenate(out, 1), whole, atol=2e-5)
        for store, x in ((cache.keys, k), (cache.values, v)):
            same_codes(store, x, 61)


def same_codes(store: Store, x, stored: int) -> None:
    side = store.side
    if side.spec is None:
        assert np.array_equal(store.recent[:, :stored], x)
        return
    closed = side.closed(stored)
    assert closed > 0
    assert store.codes.codes.dtype == jnp.uint8
    expected = coded(x, side)[:, :closed]
    assert np.array_equal(back(qlab.dequantize(store.codes), side)[:, :closed], expected)
    cut = x[:, : closed // side.group * side.group]
    codes = quantize(turned(cut, side), side.spec).codes
    where = np.s_[..., : cut.shape[1]] if side.by == "channel" else np.s_[..., : cut.shape[1], :]
    assert np.array_equal(store.codes.codes[where], codes)


@pytest.mark.parametrize("model", [MODEL, OPT], ids=["llama", "opt"])
def test_steps_are_the_whole_pass(model):
    """A model decodes what scoring sees. 8 bits, so that a code on the edge moves little; the
    codes' equality is the test above."""
    q = quantize_kv(model, kivi(8, group=16, window=16))
    tokens = tokens_for(q, batch=2, time=72)
    whole, float_ = q.hidden(tokens), model.hidden(tokens)
    caches, found = q.caches(2, 128), []
    for start, end in ((0, 37), *((i, i + 1) for i in range(37, 72))):
        hidden, caches = q.step(tokens[:, start:end], jnp.int32(start), caches)
        found.append(hidden)
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-3)
    # the same numbers, in other sums
    np.testing.assert_allclose(float_[:, 1], whole[:, 1], atol=1e-5)
    assert 1e-4 < np.abs(whole - float_)[:, 40:].max()


def test_batches_do_not_mix():
    q = quantize_kv(MODEL, SMALL)
    tokens = tokens_for(q, batch=3, time=50)
    together = q(tokens)
    alone = jnp.concatenate([q(tokens[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-3)


def test_a_step_compiles_once():
    q = quantize_kv(MODEL, kivi(4, group=8, window=8))
    caches = q.caches(1, 64)
    _, caches = q.step(jnp.array([[1]]), jnp.int32(0), caches)
    before = transformer._run._cache_size()
    for position in range(1, 30):
        _, caches = q.step(jnp.array([[position]]), jnp.int32(position), caches)
    assert transformer._run._cache_size() == before


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in (3, 40)]


@pytest.mark.parametrize("length", [16, *SLOW])
def test_generation_writes_what_whole_passes_would(length):
    """Prompts shorter than the window, as long as a bucket, and longer; padded all the same."""
    q = quantize_kv(MODEL, kivi(8, group=16, window=16))
    ids = np.random.default_rng(length).integers(1, 300, length).tolist()
    found = list(generate_tokens(q, ids, 24))
    expected = list(ids)
    for _ in found:
        expected.append(int(jnp.argmax(q(jnp.array([expected]))[0, -1])))
    assert len(found) > 8 and found == expected[length:]


def test_shorter_than_the_window_is_the_float_model():
    tokens = tokens_for(MODEL, time=100)
    found = quantize_kv(MODEL, kivi(2, group=16, window=128))(tokens)
    np.testing.assert_allclose(found, MODEL(tokens), atol=1e-4)
    assert np.abs(quantize_kv(MODEL, SMALL)(tokens) - MODEL(tokens)).max() > 0.1


def test_nan_is_not_hidden():
    """One NaN makes its group NaN for all later queries, and no earlier one."""
    q, k, v = heads(61)
    k = k.at[0, 20, 0, 3].set(jnp.nan)
    found = np.asarray(jax.jit(over_sequence, static_argnums=3)(q, k, v, SMALL))
    assert np.isfinite(found[1]).all() and np.isfinite(found[0, :20]).all()
    assert np.isnan(found[0, 32:, :2]).all()
    with pytest.raises(ValueError, match="1 NaN"):
        over_sequence(q, k, v, SMALL)  # at the door, where numbers can be seen


# ---- sizes


def test_bytes_are_those_of_packed_arrays():
    """What `cache_size` reports is what codes take packed, and scales, and a float16 window."""
    kv, tokens = kivi(2, group=16, window=32), 100
    cache = KVCache.empty(kv, 2, 128, 3, 16)
    total = 0
    for side, store in ((kv.key_side, cache.keys), (kv.value_side, cache.values)):
        closed = side.closed(tokens)
        part = quantize(turned(jnp.ones((2, closed, 3, 16)), side), side.spec)
        total += (
            qlab.pack(np.asarray(part.codes), UINT2).nbytes + part.scale.nbytes + part.offset.nbytes
        )
        total += 2 * store.recent.size
    found = cache_size([cache, cache], tokens)
    assert found.packed == 2 * total
    assert found.float16 == 2 * 2 * 2 * tokens * 2 * 3 * 16
    assert found.memory == 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert cache_size(MODEL.caches(1, 64), 64).packed == 2 * 2 * 64 * 2 * 16 * 2


def test_published_bits():
    """2 bits and two float16 for 32 numbers are 3 bits a number: KIVI's group of 32."""
    assert [r.key_side.code_bits for r in (KVS["kivi8"], KVS["kivi4"], KVS["kivi2"])] == [9, 5, 3]
    assert KVS["kivi2"].keys == Spec(UINT2, 32, "float16", offset="float16", rule=minmax)


def test_channels_that_stand_out_are_why():
    """Keys with a few large channels: by channel the error is a fraction of that by token."""
    x = jax.random.normal(jax.random.key(0), (1, 64, 2, 32)).at[..., 5].multiply(30)
    error = [float(jnp.linalg.norm((coded(x, Side(KVS["kivi2"].keys, by, 0)) - x)[..., :5]))
             for by in ("channel", "token")]  # fmt: skip
    assert error[0] < 0.25 * error[1]


# ---- recipes and models


def test_a_model_says_what_it_is():
    q = quantize_kv(MODEL, SMALL)
    assert q.kv == SMALL and MODEL.kv is None and quantize_kv(q, None).kv is None
    assert q.notes[-1].startswith("KV cache: ") and quantize_kv(q, None).notes == MODEL.notes
    assert surgery.dense(q).kv == SMALL
    assert weights_hash(quantize_kv(q, None)) == weights_hash(MODEL) != weights_hash(q)
    assert weights_hash(q) != weights_hash(quantize_kv(MODEL, SMALL.replace(window=32)))
    rounded = qlab.quantize_model(q, "rtn", "int8_channel", progress=False)
    assert rounded.kv == SMALL


def test_evaluate_reads_the_quantized_cache():
    q = quantize_kv(MODEL, SMALL)
    text = {"mine": "the cat in the hat and the thin thing " * 20}
    found = qlab.evaluate(q, reference=MODEL, texts=text, context=64, progress=False)["mine"]
    same = qlab.evaluate(MODEL, reference=MODEL, texts=text, context=64, progress=False)["mine"]
    assert found.kl.value > 1e-3 > 1e-6 > same.kl.value


def test_a_recipe_is_not_lost_in_a_file(tmp_path):
    with pytest.raises(ValueError, match="no part of a file"):
        qlab.save(quantize_kv(MODEL, SMALL), tmp_path / "model")


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: quantize_kv(MODEL, "kivi2"), "head_dim 16 is not a multiple of block 32"),
        (lambda: quantize_kv(MODEL, "kivi3"), "'kivi"),
        (lambda: kivi(2, window=40), "window 40 is not a multiple of block 32"),
        (lambda: kivi(2, window=-1), "window -1"),
        (lambda: kivi(9), "bits 9"),
        (lambda: kivi(2, keys_by="chanel"), "'channel'"),
        (lambda: KV(Spec(UINT4, "row"), None), "block 'row'"),
        (lambda: KV(Spec(UINT4, 32, Spec(UINT6, 8, "float16")), None), "scales of a dtype"),
        (lambda: KV("int4", None), "Spec"),
    ],
)
def test_errors_name_what_is_wrong(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_names():
    for name, recipe in KVS.items():
        assert name_of(recipe) == name and find(name) is recipe and find(recipe) is recipe
    assert name_of(KVS["token4"].replace(window=32)) == "token4, window 32"
    assert name_of(SMALL.replace(values=None)) == (
        "keys UINT2 by channel, block 16, values float, window 16"
    )
    assert CONFIG.head_dim == 16
