"""Evaluation against plain numpy formulas on small random models, and the honesty of its bars."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.evaluation import Evaluation, evaluate
from qlab.evaluation import reference as kept
from qlab.evaluation.bars import bootstrap, paired_error, standard_error, with_bar
from qlab.evaluation.divergence import token_scores
from qlab.evaluation.windows import cut, token_bytes
from qlab.models.surgery import map_linears
from qlab.models.transformer import Config, Label, Linear, Transformer
from qlab.qtensor import quantize
from qlab.specs import SPECS

CONFIG = Config(256, 64, 128, 2, 4, 2, 16, max_position_embeddings=128)
TEXT = "The grid is finite; 격자는 유한하다. What lies between two points goes to one. " * 40


class Bytes:
    """A tokenizer of 256 tokens: one a byte."""

    fingerprint = "bytes" * 8
    bos_id = None

    def encode(self, text, special=False):
        return [self.bos_id] * special + list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def small(seed=0, name="float", tokenizer=None):
    model = Transformer.init(CONFIG, jax.random.key(seed))
    model = map_linears(model, lambda _, layer: Linear(8 * layer.weight))  # away from uniform
    model.label = Label(name, tokenizer or Bytes(), notes=("random weights",))
    return model


def quantized(model, spec="int4_g32", name="int4"):
    q = map_linears(model, lambda _, layer: Linear(quantize(layer.weight, SPECS[spec])))
    q.label = Label(name, model.tokenizer, notes=("rounded",))
    return q


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def pair():
    model = small()
    return model, quantized(model)


def run(model, reference=None, **settings):
    settings = {
        "texts": {"mixed": TEXT},
        "tokens": 512,
        "context": 64,
        "progress": False,
    } | settings
    return evaluate(model, reference=reference, **settings)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_hand(model, reference, first=0, context=64, count=8, bos=None):
    """The whole evaluation in numpy float64, from full logits."""
    ids = np.array(list(TEXT.encode())[: context * count]).reshape(count, context)
    seen = ids.copy()
    if bos is not None:
        seen[:, 0] = bos
    p, q = (log_softmax(m(jnp.asarray(seen)))[:, first:-1] for m in (reference, model))
    goal = ids[:, first + 1 :, None]
    nll_p, nll_q = (-np.take_along_axis(x, goal, -1)[..., 0] for x in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1)
    return nll_p, nll_q, kl, p.argmax(-1) == q.argmax(-1)


@pytest.mark.parametrize("protocol,first", [("gptq", 0), ("llama.cpp", 32)])
def test_numbers_are_the_formulas(pair, protocol, first):
    model, q = pair
    score = run(q, model, protocol=protocol)["mixed"]
    nll_p, nll_q, kl, same = by_hand(q, model, first)
    n = nll_q.size
    assert score.tokens == n == 8 * (64 - 1 - first)
    assert score.ppl.value == pytest.approx(np.exp(nll_q.mean()), rel=1e-5)
    assert score.ppl.naive == pytest.approx(
        np.exp(nll_q.mean()) * np.sqrt(nll_q.var() / (n - 1)), rel=1e-4
    )
    assert score.dlnppl.value == pytest.approx(nll_q.mean() - nll_p.mean(), abs=1e-5)
    cov = ((nll_q * nll_p).mean() - nll_q.mean() * nll_p.mean()) / (n - 1)
    naive = np.sqrt(nll_q.var() / (n - 1) + nll_p.var() / (n - 1) - 2 * cov)
    assert score.dlnppl.naive == pytest.approx(naive, rel=1e-3)
    assert score.kl.value == pytest.approx(kl.mean(), rel=1e-4)
    assert score.kl.naive == pytest.approx(np.sqrt(kl.var() / (n - 1)), rel=1e-3)
    assert score.kl_999 == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    assert score.kl_max == pytest.approx(kl.max(), rel=1e-3)
    share = same.mean()
    assert score.same_top1.value == pytest.approx(share)
    assert score.same_top1.naive == pytest.approx(np.sqrt(share * (1 - share) / (n - 1)))
    dp = np.exp(-nll_q) - np.exp(-nll_p)
    rms = np.sqrt((dp**2).mean())
    assert score.dp.value == pytest.approx(dp.mean(), abs=1e-7)
    assert score.dp_rms.value == pytest.approx(rms, rel=1e-4)
    assert score.dp_rms.naive == pytest.approx(
        0.5 / rms * np.sqrt((dp**2).var() / (n - 1)), rel=1e-3
    )
    # one token is one byte here, so bits per byte are bits per token
    assert score.bytes == n
    assert score.bits_per_byte.value == pytest.approx(nll_q.mean() / np.log(2), rel=1e-5)


def test_gptq_factors_of_seqlen_cancel(pair):
    """The original's mean over seqlen−1, times seqlen, over nsamples · seqlen is our mean."""
    model, q = pair
    nll = by_hand(q, model)[1]
    original = np.exp((nll.mean(axis=1) * 64).sum() / (8 * 64))
    assert run(q)["mixed"].ppl.value == pytest.approx(original, rel=1e-5)


def test_llama_cpp_begins_with_bos():
    tokenizer = Bytes()
    tokenizer.bos_id = 7
    model = small(tokenizer=tokenizer)
    q = quantized(model)
    score = run(q, model, protocol="llama.cpp")["mixed"]
    with_bos = by_hand(q, model, 32, bos=7)[1].mean()
    without = by_hand(q, model, 32)[1].mean()
    assert abs(with_bos - without) > 1e-4
    assert np.log(score.ppl.value) == pytest.approx(with_bos, rel=1e-5)


def test_kl_is_never_negative_and_resolves_rounding():
    key = jax.random.key(0)
    z = 5 * jax.random.normal(key, (64, 1000))
    goal = jnp.zeros(64, jnp.int32)
    for noise in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        zq = z + noise * jax.random.normal(jax.random.key(1), z.shape)
        kl = np.asarray(token_scores(z, zq, goal).kl)
        exact_p, exact_q = log_softmax(z), log_softmax(zq)
        exact = (np.exp(exact_p) * (exact_p - exact_q)).sum(1)
        assert (kl >= 0).all()
        np.testing.assert_allclose(kl, exact, rtol=1e-2, atol=4e-12)
    far = jnp.where(jnp.arange(1000) == 3, 200.0, 0.0)[None].repeat(64, 0)  # q far above a tiny p
    kl = token_scores(-far, far, goal).kl
    assert np.isfinite(kl).all()


def test_same_weights_lose_nothing_and_other_batches_only_noise(pair):
    model, q = pair
    again = run(model, model)["mixed"]
    assert again.kl.value == 0 and again.dlnppl.value == 0 and again.same_top1.value == 1
    floor = run(model, model, batch=3)["mixed"]
    assert 0 <= floor.kl.value < 1e-9
    lost = run(q, model)["mixed"].kl.value
    assert lost > 1e4 * max(floor.kl.value, 1e-12)


@pytest.mark.parametrize("batch", [1, 3, 8, 16])
def test_batch_size_does_not_matter(pair, batch):
    model, q = pair
    a, b = run(q, model)["mixed"], run(q, model, batch=batch)["mixed"]
    assert a.ppl.value == pytest.approx(b.ppl.value, rel=1e-5)
    assert a.kl.value == pytest.approx(b.kl.value, rel=1e-3)
    np.testing.assert_allclose(a.window_nll, b.window_nll, rtol=1e-5)


def test_reference_runs_once(pair, monkeypatch):
    model, q = pair
    ran = []
    original = kept.batches
    monkeypatch.setattr(kept, "batches", lambda *a: ran.append(a[2]) or original(*a))
    first = run(q, model)
    assert len(ran) == 2
    second = run(q, model)
    assert len(ran) == 3, "the reference ran again"
    assert first["mixed"] == second["mixed"]
    run(q, small(seed=5))
    assert len(ran) == 5, "another reference must not be mistaken for the first"


def test_weights_hash_sees_every_weight(pair):
    model, q = pair
    assert kept.weights_hash(model) == kept.weights_hash(small()) != kept.weights_hash(q)
    moved = small()
    moved.norm.weight = moved.norm.weight.at[3].add(1e-6)
    assert kept.weights_hash(moved) != kept.weights_hash(model)
    renamed = small(name="another")
    assert kept.weights_hash(renamed) == kept.weights_hash(model)


def test_states_are_read_from_disk(pair):
    """Memory holds one batch of states at a time, however long the text."""
    windows = cut(TEXT, Bytes(), context=64)
    found = kept.states(pair[0], "any", windows, 4, lambda n: None)
    assert isinstance(found, np.memmap) and found.shape == (*windows.targets.shape, 64)


def test_kept_states_are_trimmed(pair, monkeypatch):
    model, q = pair
    monkeypatch.setattr(kept, "LIMIT", 1)
    run(q, model)
    run(q, model, tokens=256)
    assert len(list((kept.cache_dir() / "states").iterdir())) == 1


def test_without_reference(pair):
    row = run(pair[1])
    score = row["mixed"]
    assert score.kl is None and score.dlnppl is None and score.ppl.value > 1
    assert row.protocol.reference is None


def test_bytes_of_tokens_add_up():
    class Pieces(Bytes):
        """Tokens of one to three bytes that cut characters anywhere."""

        def encode(self, text):
            raw, ids, i = text.encode(), [], 0
            while i < len(raw):
                ids.append(raw[i : i + 1 + len(ids) % 3])
                i += len(ids[-1])
            return ids

        def decode(self, ids):
            return b"".join(ids).decode(errors="replace")

    text = "한글과 English, 🙂 together. " * 5
    ids = Pieces().encode(text)
    found = token_bytes(Pieces(), ids)
    assert found.sum() == len(text.encode())
    assert abs(np.cumsum(found) - np.cumsum([len(i) for i in ids])).max() < 4
    ids = Bytes().encode(text)
    np.testing.assert_array_equal(token_bytes(Bytes(), ids), 1)


def test_bits_per_byte_counts_scored_bytes_only():
    w = cut(TEXT, Bytes(), context=64, tokens=512)
    assert w.bytes.tolist() == [63] * 8
    w = cut(TEXT, Bytes(), context=64, tokens=512, protocol="llama.cpp")
    assert w.bytes.tolist() == [31] * 8 and w.first == 32


# ---- bars ----------------------------------------------------------------------------------------


def test_no_bars_below_eight_windows(pair):
    model, q = pair
    score = run(q, model, tokens=7 * 64)["mixed"]
    assert score.windows == 7 and score.ppl.bar is None and score.kl.bar is None
    assert run(q, model)["mixed"].ppl.bar is not None


def test_bootstrap_is_the_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(size=40)
    assert bootstrap(lambda m: m, x, seed=1) == pytest.approx(x.std(ddof=1) / np.sqrt(40), rel=0.06)
    small = x[:8]  # the plain bootstrap would be 7 % short here
    wanted = small.std(ddof=1) / np.sqrt(8)
    assert bootstrap(lambda m: m, small, seed=1, draws=20000) == pytest.approx(wanted, rel=0.03)


def test_bootstrap_bars_cover():
    """About 68 % of one-standard-error bars hold the true mean; with tokens correlated inside
    windows the naive formula covers far less."""
    rng = np.random.default_rng(0)
    covered = naive_covered = 0
    for trial in range(300):
        shift = rng.normal(size=(32, 1))  # what the tokens of one window share
        x = shift + rng.normal(size=(32, 63))
        bar = bootstrap(lambda m: m, x.mean(axis=1), seed=trial, draws=300)
        covered += abs(x.mean()) < bar
        naive_covered += abs(x.mean()) < standard_error(x.reshape(-1))
    assert 0.60 < covered / 300 < 0.75
    assert naive_covered / 300 < 0.3


def test_pairing_shrinks_the_bar():
    rng = np.random.default_rng(0)
    a = rng.gamma(2, 1, 2000)
    b = a + 0.01 + 0.02 * rng.normal(size=2000)
    unpaired = np.hypot(standard_error(a), standard_error(b))
    assert paired_error(a, b) < unpaired / 20
    assert paired_error(a, b) == pytest.approx(standard_error(b - a), rel=1e-6)


def test_numbers_are_written_to_the_place_the_bar_justifies():
    assert with_bar(52.2381, 0.8123) == "52.2 ± 0.8"
    assert with_bar(0.04042, 0.00121) == "0.0404 ± 0.0012"
    assert with_bar(1234.6, 56.7) == "1235 ± 57"
    assert with_bar(99.95, 0.0951) == "99.95 ± 0.10"
    assert with_bar(3.2e-9, 1.1e-9) == "(3.2 ± 1.1)e-9"
    assert with_bar(1.377e-4, 2.03e-6) == "(1.377 ± 0.020)e-4"
    assert with_bar(4715755.0, 1234567.0) == "(4.7 ± 1.2)e6"
    assert with_bar(7.51234, None) == "7.512"


# ---- sizes, files, errors ------------------------------------------------------------------------


def test_sizes_keep_the_embedding_apart(pair):
    model, q = pair
    whole, small_ = run(model).size, run(q).size
    assert whole.linears.bits_per_weight == 32 and whole.embedding.bits_per_weight == 32
    assert small_.linears.weights == whole.linears.weights == 2 * (2 * 4096 + 2 * 2048 + 3 * 8192)
    scale = 32 if SPECS["int4_g32"].scale == "float32" else 16
    assert small_.linears.bits_per_weight == pytest.approx(4 + scale / 32)
    assert small_.linears.bytes_packed == small_.linears.weights * (4 + scale / 32) / 8
    assert small_.linears.bytes_memory > small_.linears.bytes_packed  # a code is a byte there
    assert small_.embedding == whole.embedding


def test_json_round_trip(pair):
    model, q = pair
    row = run(q, model)
    assert Evaluation.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    bare = run(q)
    assert Evaluation.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


def test_everything_that_names_the_protocol_rides_along(pair):
    model, q = pair
    p = run(q, model, seed=3).protocol
    assert (p.name, p.context, p.reference, p.seed) == ("gptq", 64, "float", 3)
    assert p.reference_hash == kept.weights_hash(model) and p.tokenizer == Bytes.fingerprint
    assert "float32" in p.precision and {"qlab", "jax", "numpy", "python"} <= set(p.versions)
    assert run(q, model).notes == ("rounded",)


def test_results_are_frozen(pair):
    row = run(pair[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"texts": {"mine": "  \n"}}, ["'mine'", "empty"]),
        ({"texts": {"mine": "short"}, "tokens": None}, ["5 tokens", "64"]),
        ({"tokens": 32}, ["32", "64"]),
        ({"texts": {"mine": "x" * 100}}, ["100", "512"]),
        ({"texts": "englsh"}, ["'englsh'", "'english'"]),
        ({"texts": ["english", "koraen"]}, ["'koraen'", "'korean'"]),
        ({"protocol": "gtpq"}, ["'gtpq'", "'gptq'"]),
        ({"context": 4096}, ["4096", "128"]),
        ({"texts": {}}, ["no texts"]),
    ],
)
def test_bad_input_is_one_sentence(pair, settings, words):
    with pytest.raises(ValueError) as caught:
        run(pair[0], **settings)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reference_with_another_tokenizer(pair):
    other = Bytes()
    other.fingerprint = "another" * 8
    with pytest.raises(ValueError, match="different tokenizers.*bytes.*another"):
        run(pair[1], small(tokenizer=other))
    bare = small()
    bare.label = Label("bare")
    with pytest.raises(ValueError, match="'bare' has no tokenizer"):
        run(bare)


def test_default_context_is_what_model_and_text_allow(pair):
    assert run(pair[0], context=None, tokens=None).protocol.context == 128
    assert run(pair[0], context=None, tokens=100).protocol.context == 100
