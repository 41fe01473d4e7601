"""The bench: what is timed in which order, the bytes and operations behind it, what it refuses.
No test here looks at a real clock.
"""

import dataclasses
import importlib
import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.activations import ACTS
from qlab.evaluation import bench as public
from qlab.evaluation import steps
from qlab.evaluation.latency import COLUMNS, GROUPS, Bench, Speed, Speeds
from qlab.evaluation.roofline import Load, Roof, decode_load
from qlab.evaluation.shapes import SHAPES
from qlab.models.generate import generate_tokens
from qlab.models.kv import quantize_kv
from qlab.models.quantize import quantize_model
from qlab.models.surgery import dense, linears
from qlab.models.with_kernels import with_kernels
from tests.models_for_tests import OPT_CONFIG, random_model

module = importlib.import_module("qlab.evaluation.bench")  # the package's `bench` is the function
MODEL = random_model()
LINEARS = sum(layer.weight.size for layer in linears(MODEL).values())
TABLE = MODEL.embed_tokens.weight.size
NORMS = (2 * 2 + 1) * 64


class Clock:
    """Every look is `step` seconds after the one before."""

    def __init__(self, step=1.0):
        self.step, self.now, self.looks = step, 0.0, 0

    def __call__(self):
        self.now, self.looks = self.now + self.step, self.looks + 1
        return self.now


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """The machine's own speeds on small arrays: their values are not what is tested."""
    monkeypatch.setattr(module, "COPIED", {"": 2**12})
    monkeypatch.setattr(module, "SQUARE", {"": 16})


def quick(models, **chosen):
    return qlab.bench(models, **{"context": 12, "new_tokens": 4, "rounds": 2, "progress": False,
                                 "clock": Clock(), **chosen})  # fmt: skip


@pytest.fixture(scope="module")
def packed():
    return with_kernels(quantize_model(MODEL, "rtn", "int4_g64", progress=False))


# ---- counting


def test_a_step_reads_weights_and_cache():
    caches = MODEL.caches(3, 20)
    load = steps.load_of(MODEL, caches, 1)
    assert steps.read_bytes(MODEL) == 4 * (LINEARS + TABLE + NORMS)
    cache = 2 * 2 * 3 * 20 * 2 * 16 * 4  # layers, keys and values, …, heads, channels, float32
    assert load.bytes == 4 * (LINEARS + TABLE + NORMS) + cache
    assert load.operations == 3 * (2 * (LINEARS + TABLE) + 4 * 2 * 4 * 16 * 20)


def test_a_prompt_reads_out_one_position():
    load = steps.load_of(MODEL, MODEL.caches(1, 20), 16)
    assert load.operations == 2 * (16 * LINEARS + TABLE) + 16 * 4 * 2 * 4 * 16 * 20
    assert load.bytes == steps.load_of(MODEL, MODEL.caches(1, 20), 1).bytes


@pytest.mark.parametrize("model", [MODEL, random_model(OPT_CONFIG)], ids=["llama", "opt"])
def test_a_shape_predicts_what_its_model_multiplies(model):
    """The roofline's arithmetic for shapes, beside that of the arrays."""
    shape, load = steps.shape_of(model), steps.load_of(model, model.caches(3, 20), 1)
    predicted = decode_load(shape, 32, batch=3, context=20, kv_bits=32)
    assert predicted.operations == load.operations
    vectors = sum(leaf.nbytes for leaf in jax.tree.leaves(model.layers) if leaf.ndim == 1)
    vectors += sum(leaf.nbytes for leaf in jax.tree.leaves(model.norm))
    assert load.bytes == predicted.bytes + vectors


def test_packed_weights_are_counted_packed(packed):
    parts = [layer.weight for layer in linears(packed).values()]
    assert all(p.codes.dtype == jnp.uint8 for p in parts)
    bits = 8 * (steps.read_bytes(dense(packed)) - 4 * (TABLE + NORMS)) / LINEARS
    assert bits == pytest.approx(4.25)
    assert steps.multiplied(packed) == {"float32": LINEARS + TABLE}
    half = with_kernels(quantize_model(MODEL, "rtn", "int4_g64", progress=False), "bfloat16")
    assert steps.multiplied(half) == {"bfloat16": LINEARS, "float32": TABLE}


def test_what_integers_multiply():
    act = "int8_token"
    q = quantize_model(MODEL, "rtn", "int8_channel", act=act, progress=False)
    assert steps.multiplied(dense(q)) == {"int8": LINEARS, "float32": TABLE}
    assert steps.multiplied(with_kernels(q)) == {"int8": LINEARS, "float32": TABLE}
    fp8 = quantize_model(MODEL, "rtn", "fp8_channel", act="fp8_token", progress=False)
    assert list(steps.multiplied(dense(fp8))) == ["float8_e4m3fn", "float32"]
    odd = quantize_model(MODEL, "rtn", "nf4", act=ACTS[act], progress=False)
    assert steps.multiplied(dense(odd)) == {"float32": LINEARS + TABLE}


def test_quantized_caches_are_smaller():
    kv = quantize_kv(random_model(dataclasses.replace(MODEL.config, head_dim=32)), "kivi2")
    plain = quantize_kv(kv, None)
    few, many = (steps.load_of(m, m.caches(1, 224), 1) for m in (kv, plain))
    assert few.operations == many.operations and few.bytes < many.bytes


# ---- timing


def test_what_is_timed():
    """One look before and after a prompt, one before and after all decode steps, and so on."""
    clock = Clock(0.5)
    found = quick(MODEL, batch=[1, 3], clock=clock, rounds=2, new_tokens=4)
    assert clock.looks == 3 * (2 * 4 + 2 * 2 * 3)  # a round to compile; rows; three probes of two
    for row in found.rows:
        assert row.first == (0.5, 0.5) and row.step == (0.125, 0.125)
        assert row.tokens_per_second == row.batch * 8
        assert row.prompt_tokens_per_second == row.batch * 24
        assert row.bytes_per_second == row.decode.bytes * 8
        assert row.decode == steps.load_of(MODEL, MODEL.caches(row.batch, 16), 1)
        assert row.weight_bytes + row.cache_bytes == row.decode.bytes
        assert row.shape.params == LINEARS + TABLE and row.shape.cached == 2 * 2 * 2 * 16
    assert found.speeds.bandwidth == (2 * 2**12 / 0.5,) * 2
    assert found.speeds.peaks == {"float32": (2 * 16**3 / 0.5,) * 2}
    assert (found.context, found.new_tokens, found.rounds) == (12, 4, 2)


def test_the_machine_is_probed_for_its_best():
    times = iter([0, 4, 10, 11, 20, 22])
    assert module._best(lambda: None, 8.0)(lambda: next(times)) == 8.0


def test_rounds_go_forwards_and_backwards():
    seen = []
    cells = {name: lambda clock, name=name: seen.append(name) for name in "abc"}
    found = module._measure(cells, 2, Clock(), False)
    assert "".join(seen) == "abccbaabc" and found == {name: [None, None] for name in "abc"}


def test_the_tokens_are_generates(packed):
    """What is timed is what `generate` computes: the same tokens come out."""
    ids = MODEL.tokenizer.encode("the cat in the hat")
    for model in (MODEL, packed):
        running, tokens = dense(model), jnp.array([ids, ids])
        caches, wrote = running.caches(2, len(ids) + 3), []
        last, caches = module._step(running, tokens, 0, caches)
        for i in range(3):
            wrote.append(int(last[1, 0]))
            last, caches = module._step(running, last, len(ids) + i, caches)
        wrote.append(int(last[0, 0]))
        expected = list(generate_tokens(model, ids, 4))
        assert wrote[: len(expected)] == expected


def test_any_model_is_timed(packed):
    opt = random_model(OPT_CONFIG)
    kv = quantize_kv(random_model(dataclasses.replace(MODEL.config, head_dim=32)), "kivi2")
    q = quantize_model(MODEL, "rtn", "int8_channel", act="int8_token", progress=False)
    plain = quantize_model(MODEL, "rtn", "nf4", progress=False)
    found = quick({"float": MODEL, "packed": packed, "opt": opt, "kv": kv, "w8a8": q,
                   "nf4": plain}, rounds=1)  # fmt: skip
    assert found.models == ("float", "packed", "opt", "kv", "w8a8", "nf4")
    assert found["w8a8", 1].products == "int8" and set(found.speeds.peaks) == {"float32", "int8"}
    assert found["nf4", 1].weight_bytes == found["float", 1].weight_bytes  # dense once …
    assert "nf4: QTensors (4.5 bits a weight in 14 linears) are dequantized once" in (
        " ".join(found["nf4", 1].notes)
    )  # … and it says so
    assert "packed: packed weights are unpacked by XLA before each product" in (
        " ".join(found["packed", 1].notes)
    )
    assert "the head is float32 and" in " ".join(found["packed", 1].notes)
    assert "decodes the whole quantized cache" in found["kv", 1].notes[-2]
    assert (
        "kv: for 16 tokens its cache is 2.6 times a float one, since 128 of them"
        in (found["kv", 1].notes[-1])
    )
    assert found["float", 1].notes == ()
    for row in found.rows:
        assert found.roof(row).peak > 0 and math.isfinite(row.decode.intensity)


def test_names_differ(packed):
    found = quick([MODEL, packed, MODEL], rounds=1)
    assert found.models == ("random", "random rtn int4_g64, kernels", "random (2)")
    odd = jax.tree.map(lambda leaf: leaf, MODEL)
    odd.label = dataclasses.replace(MODEL.label, name="a (b)")
    assert list(module._named([odd, odd, odd])) == ["a (b)", "a (b) (2)", "a (b) (3)"]


def test_integers_on_both_sides_are_not_unpacked():
    q = quantize_model(MODEL, "rtn", "int8_channel", act="int8_token", progress=False)
    (row,) = quick(with_kernels(q), rounds=1).rows
    assert row.products == "int8" and "unpacked" not in " ".join(row.notes)


def test_prompts_are_repeated_or_cut():
    ids = MODEL.tokenizer.encode("the cat")
    tokens = module._prompt(MODEL, "the cat", 2, len(ids) + 3)
    np.testing.assert_array_equal(tokens, [[*ids, *ids[:3]]] * 2)
    assert module._context({"m": MODEL}, None, "the cat", 4) == len(ids)
    assert module._context({"m": MODEL}, None, None, 200) == 56  # what 256 positions leave
    nameless = jax.tree.map(lambda leaf: leaf, MODEL)
    nameless.label = dataclasses.replace(MODEL.label, tokenizer=None)
    assert module._prompt(nameless, None, 1, 5).tolist() == [[0, 1, 2, 3, 4]]


# ---- refusing


@pytest.mark.parametrize(
    "models, chosen, words",
    [
        ("tiny", {}, r"models='tiny' is a name: qlab.load\('tiny'\) gives the model"),
        (["tiny", "tiny"], {}, r"'tiny' is a name: qlab.load\('tiny'\) gives"),
        ({"a": 3}, {}, "models= takes a model, as qlab.load gives it, not 3"),
        (None, {}, "models= takes a model, as qlab.load gives it, not None"),
        (3, {}, "models= takes a model, as qlab.load gives it, not 3"),
        (print, {}, "models= takes models, as qlab.load gives them, not <built-in"),
        ({1: MODEL}, {}, "a row's name is text, not 1"),
        ([], {}, "no models to time"),
        (MODEL, {"batch": 0}, "batch 0 is less than 1"),
        (MODEL, {"batch": [1, -4]}, "batch -4 is less than 1"),
        (MODEL, {"batch": []}, "no batch to time"),
        (MODEL, {"batch": "16"}, "batch '16' is no whole number"),
        (MODEL, {"batch": [1.5]}, "batch 1.5 is no whole number"),
        (MODEL, {"batch": 1.5}, "batch 1.5 is no whole number"),
        (MODEL, {"batch": None}, "batch None is no whole number"),
        (MODEL, {"prompt": 5}, "prompt 5 is no text"),
        (MODEL, {"batch": [True]}, "batch True is no whole number"),
        (MODEL, {"rounds": 0}, "rounds 0 is less than 1"),
        (MODEL, {"new_tokens": 0}, "new_tokens 0 is less than 1"),
        (MODEL, {"context": 0}, "context 0 is less than 1"),
        (MODEL, {"context": 253}, "a context of 253 and 4 new tokens are more than the 256 pos"),
        (MODEL, {"new_tokens": 256, "context": None}, "context of 1 and 256 new tokens are more"),
        (MODEL, {"prompt": ""}, "the prompt is empty"),
    ],
)
def test_errors_name_both_numbers(models, chosen, words):
    with pytest.raises(ValueError, match=words):
        quick(models, **chosen)


def test_a_prompt_needs_a_tokenizer():
    nameless = jax.tree.map(lambda leaf: leaf, MODEL)
    nameless.label = dataclasses.replace(MODEL.label, tokenizer=None)
    with pytest.raises(ValueError, match="no tokenizer"):
        quick(nameless, prompt="the cat")
    assert quick(nameless, rounds=1).rows


# ---- telling


def table(rounds=8):
    """Two models at two batches: the second is twice as fast at 1, and not told apart at 16."""
    load, few = Load(100e6, 50e6), Load(30e6, 50e6)
    slow = (0.04, 0.05, 0.06, 0.05, 0.05, 0.05, 0.05, 0.05)[:rounds]
    fast = tuple(x / 2 for x in slow)
    mixed = tuple(x * f for x, f in zip(slow, (0.9, 1.1, 1.0, 1.05, 0.95, 0.9, 1.1, 1.0)))
    one = Speed("a", 1, 8, slow, slow, load, load, "float32", SHAPES["smollm2-135m"], 99, 1)
    rows = (
        one,
        dataclasses.replace(one, batch=16, decode=Load(120e6, 800e6)),
        dataclasses.replace(one, model="b", step=fast, decode=few, notes=("b: unpacked.",)),
        dataclasses.replace(one, model="b", batch=16, step=mixed, decode=Load(50e6, 800e6)),
    )
    speeds = Speeds((20e9,) * rounds, {"float32": (100e9,) * rounds})
    return Bench(rows, speeds, 8, 4, rounds, "cpu (x)", 2, 0.5, {"jax": "0.10.2"})


def test_the_table_says_what_was_measured():
    found = table()
    assert sum(count for _, count in GROUPS) == len(COLUMNS)
    first, many, other, last = found.lines()
    assert first[0] == "a" and first[1] == "1" and first[2] == "50" and first[3] == "160"
    assert first[6:9] == ("20", "16.7–25", "1.00")
    assert first[9:] == ("100", "2", "1", "10%", "memory")  # 5 ms of 50
    assert other[6:9] == ("40", "33.3–50", "2.00") and other[12] == "6%"
    assert many[13] == "compute" and many[12] == "16%"  # 8 ms of 50
    assert last[8] == "1.00"


def test_verdicts_need_rounds_that_chance_does_not_fill():
    assert table().verdicts() == ["b against a, in all 8 rounds: faster at batch 1."]
    assert len(table(rounds=7).verdicts()[0].split("faster at batch 1")) == 2  # 4 / 128 < 0.05
    few = "6 rounds can tell no difference from chance in 2 comparisons with a; more rounds: 7."
    assert table(rounds=6).verdicts() == [few] and few in table(rounds=6).notes()
    same = dataclasses.replace(table(), rows=table().rows[:2] * 2)
    assert same.verdicts() == []  # one model


def test_faster_than_the_roof_is_noted():
    found = table()
    assert "over 100 %" not in " ".join(found.notes())
    slow = dataclasses.replace(found.speeds, bandwidth=(1e9,) * 8)  # 100 ms for 100 MB
    words = " ".join(dataclasses.replace(found, speeds=slow).notes())
    assert "over 100 % of the roof: a × 1, prompt; a × 1, decode;" in words


@pytest.mark.parametrize(
    "op, dtype, words",
    [
        ("reference, compiled by XLA", None, "are unpacked by XLA before each product"),
        ("Pallas kernel", None, None),
        ("Pallas kernel (Hopper; bfloat16), else the reference", None,
         'w4a16 in float32 takes the reference here, compiled by XLA; qlab.with_kernels'),
        ("Pallas kernel (Hopper; bfloat16), else the reference", "bfloat16",
         "w4a16 runs here as Pallas kernel (Hopper; bfloat16), else the reference"),
    ],
)  # fmt: skip
def test_what_packed_weights_run_as_is_said_of_every_platform(monkeypatch, op, dtype, words):
    monkeypatch.setattr(module, "support", lambda: {"w4a16": op, "q4_k": op})
    q = quantize_model(MODEL, "rtn", "int4_g64", progress=False)
    notes = list(module._kernel_notes("m", dense(with_kernels(q, dtype))))
    said = [note for note in notes if "the head is" not in note]
    assert len(said) == (words is not None) and (words or "") in " ".join(said)


def test_it_shows_itself_everywhere():
    found = table()
    html, text = found._repr_html_(), " ".join(str(found).split())
    for words in ("memory 20 GB/s", "products of float32 100 G/s", "b: unpacked.", "8 rounds"):
        assert words in html and words in text, words
    assert html.count("<tr>") == 6 and "a × 1: 20 tokens/s" in repr(found)
    frame = found.to_pandas()
    assert frame.tokens_per_s.tolist()[0] == 20 and frame.times_first.tolist()[2] == 2
    figure = found.figure()
    assert "b, tokens a second by batch: 1: 40" in figure.get_label()
    assert "cpu (x)" in figure.get_label() and len(figure.axes) == 2


def test_its_picture_is_the_same_twice(tmp_path):
    files = [qlab.plots.save(table().figure(), tmp_path / name, dpi=40) for name in "ab"]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    titled = qlab.plots.latency(table(), title="A title").get_label()
    assert titled.startswith("A title, 8 tokens of prompt")


def test_json_brings_it_back(tmp_path):
    found = quick(MODEL, batch=[1, 2])
    assert Bench.from_dict(json.loads(found.to_json())) == found
    found.save(tmp_path / "bench.json")
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["versions"]["jax"] == jax.__version__ and saved["device"].startswith("cpu")
    assert Bench.from_dict(saved)["random", 2].step == found["random", 2].step
    with pytest.raises(KeyError, match="'random', 1"):
        found["random", 3]
    with pytest.raises(KeyError, match=r"no row 'random' here: there are \('random', 1\), \("):
        found["random"]
    with pytest.raises(ValueError, match="'x.png': save writes .json; .figure\\(\\).savefig"):
        found.save("x.png")


def test_a_roof_of_products_that_were_not_timed():
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        table().speeds.roof("float3")
    assert table().speeds.roof("float32") == Roof(20e9, 100e9)
    uneven = Speeds((1e9, 3e9, 2e9), {"int8": (5e9, 4e9, 6e9)})
    assert uneven.roof("int8") == Roof(3e9, 6e9)  # what was reached once can be reached


def test_ratios_are_taken_round_by_round():
    found = table()
    row = found["b", 16]
    expected = [a / b for a, b in zip(found["a", 16].step, row.step)]
    assert found.ratios(row) == tuple(expected)
    assert f"{statistics.median(expected):.2f}" == found.lines()[3][8]


def test_it_is_public():
    assert qlab.bench is public and "bench" in qlab.__all__
