"""Advice is arithmetic: every number by hand, llama.cpp's own bits per weight and published file
sizes, more memory never fewer bits; and nothing is said without its source."""

import ast
import math
import re
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.evaluation import advise
from qlab.evaluation.advise import smaller
from qlab.evaluation.evidence import (
    ANCHORS,
    EFFICIENCY,
    LOSSES,
    PREFILL,
    PREFILL_WORDS,
    TASKS,
    WORN,
)
from qlab.evaluation.fits import Question, fit
from qlab.evaluation.machines import GIB, HARDWARE, machine_of, memory_of
from qlab.evaluation.memory import size
from qlab.evaluation.mixtures import FILES, NOMINAL, SERVED, file_bits, plan
from qlab.evaluation.shapes import SHAPES, TYPICAL, shape_of
from qlab.models.load import load

SEVENTY = "llama-3.1-70b"


def of(answer, file):
    return next(f for f in answer.fits if f.file == file)


# ---- bits and sizes that others have published


@pytest.mark.parametrize(
    "file,bits",
    [("BF16", 16.0005), ("Q8_0", 8.5008), ("Q6_K", 6.5633), ("Q5_K_M", 5.7036),
     ("Q4_K_M", 4.8944), ("Q2_K", 3.1593), ("IQ2_XS", 2.5882), ("IQ2_XXS", 2.3824)],
)  # fmt: skip
def test_bits_are_llama_cpps(file, bits):
    """llama.cpp, tools/quantize/README, Llama-3.1-8B: to its last digit."""
    assert round(file_bits(file, SHAPES["llama-3.1-8b"]), 4) == bits


@pytest.mark.parametrize(
    "name,sizes",
    [
        # GB of the files in bartowski's lists on the hub; a header of some MB comes on top.
        (SEVENTY, {"Q8_0": 74.98, "Q6_K": 57.89, "Q5_K_M": 49.95, "Q4_K_M": 42.52,
                   "IQ4_XS": 37.90, "Q3_K_M": 34.27}),
        ("qwen3-30b-a3b", {"BF16": 61.10, "Q8_0": 32.48, "Q6_K": 25.10, "Q5_K_M": 21.74}),
    ],
)  # fmt: skip
def test_sizes_are_those_on_the_hub(name, sizes):
    shape = SHAPES[name]
    for file, gigabytes in sizes.items():
        assert file_bits(file, shape) * shape.params / 8e9 == pytest.approx(gigabytes, rel=1.1e-3)


def test_shapes_have_the_published_parameters():
    counts = {"llama-3.1-8b": 8_030_261_248, SEVENTY: 70_553_706_496, "smollm2-135m": 134_515_008,
              "llama-3.1-405b": 405_853_388_800, "qwen2.5-7b": 7_615_616_512,
              "llama-3.2-1b": 1_235_814_400, "llama-2-7b": 6_738_415_616}  # fmt: skip
    assert {name: SHAPES[name].params for name in counts} == counts
    moe = SHAPES["qwen3-30b-a3b"]
    assert moe.params == pytest.approx(30.5e9, rel=2e-3) and moe.active == pytest.approx(
        3.35e9, 1e-2
    )
    assert all(shape.source for shape in SHAPES.values()) and set(TYPICAL) <= set(SHAPES)
    assert all(not shape.like or shape.like in SHAPES for shape in SHAPES.values())


def test_a_loaded_model_is_counted_by_its_tensors():
    model = load("tiny")
    shape = shape_of(model)
    assert shape.params == sum(leaf.size for leaf in jax.tree.leaves(model))
    q = qlab.quantize_model(model, "rtn", "int4_g64", progress=False)
    row = of(advise(q, memory="1 GB"), "as loaded")
    found = size(q)
    packed = found.linears.bytes_packed + found.embedding.bytes_packed
    assert row.weights == pytest.approx(packed, rel=2e-3) and row.nominal == int(row.bits)
    assert advise(q, memory=1).best.file == "BF16"  # what is loaded is no file to download
    assert "as loaded" not in str(advise("70B", memory=1))


def test_rows_that_are_no_super_block_fall_back():
    def kinds(file, name):
        return {row.name.removesuffix(".weight"): row.type for row in plan(file, SHAPES[name])}

    found = {file: kinds(file, "smollm2-135m")["blk.0.attn_q"] for file in FILES}  # 576 columns
    assert found["Q4_K_M"] == "Q5_0" and found["Q6_K"] == "Q8_0" and found["Q2_K"] == "Q4_0"
    assert found["Q8_0"] == "Q8_0" and kinds("Q4_K_M", "smollm2-135m")["token_embd"] == "Q8_0"
    assert kinds("Q4_K_M", "smollm2-135m")["blk.0.ffn_down"] == "Q6_K"  # 1536 columns
    assert kinds("Q4_K_M", SEVENTY)["blk.40.attn_v"] == "Q5_K"  # 80 layers, shared
    assert kinds("Q4_K_M", "llama-3.1-405b")["blk.40.attn_v"] == "Q4_K"


def test_servers_keep_embedding_and_head():
    s = SHAPES[SEVENTY]
    tables, vectors = 2 * 128_256 * 8192, 32 * (161 * 8192)
    for file, bits in {"AWQ 4-bit": 4 + 16 / 128 + 4 / 128, "NVFP4": 4.5}.items():
        by_hand = (s.linears * bits + tables * 16 + vectors) / s.params
        assert file_bits(file, s) == pytest.approx(by_hand, rel=1e-6)
    assert 8 * s.linears < file_bits("FP8", s) * s.params - tables * 16 < 8.01 * s.linears


# ---- golden cases, by hand


def test_seventy_billion_on_24_gb():
    """42.5 GB at 4 bits do not fit; only 2 bits do, and the answer says what is better."""
    a = advise(SEVENTY, memory="24 GB")
    cache = 2 * 80 * 8 * 128 * 8192 * 2
    reserve = 0.5e9 + 512 * 128_256 * 4
    q4 = of(a, "Q4_K_M")
    assert q4.weights == pytest.approx(42.51e9, rel=1e-3) and not q4.fits
    assert q4.need == pytest.approx(q4.weights + cache + reserve)
    assert -q4.spare == pytest.approx(42.513e9 + cache + reserve - 24e9, rel=1e-3)
    assert a.best.file == "IQ2_XXS" and a.best.need == pytest.approx(22.54e9, rel=1e-3)
    assert "24 GB: nothing better than IQ2_XXS (2.16 bits a weight) fits, " in a.headline
    assert (
        "rather take a smaller model at 4 bits or more, such as qwen2.5-32b in Q4_K_M" in a.headline
    )
    assert a.smaller.need <= 24e9
    out = q4.need - 24e9
    read = out / q4.need * (q4.weights + cache)
    assert q4.offloaded == pytest.approx(89.6e9 / read)
    said = f"left in a CPU's memory (89.6 GB/s, CPU DDR5, assumed): at most {q4.offloaded:.2g}"
    assert any(said in note for note in a.notes) and "or 2 × 24 GB" in " ".join(a.notes)


def test_seventy_billion_on_two_cards():
    a = advise(SEVENTY, memory="2x24 GB")
    weights = SHAPES[SEVENTY].params * file_bits("Q4_K_M", SHAPES[SEVENTY]) / 8
    room = (48e9 - weights - (2 * 0.5e9 + 512 * 128_256 * 4)) / (2 * 80 * 8 * 128 * 2)
    assert a.best.file == "Q4_K_M" and a.best.room == int(room) == 12_893
    assert f"= {a.best.room:,} tokens" in "\n".join(a.arithmetic)
    cards = advise(SEVENTY, hardware="2x RTX 3090")
    assert cards.question.machine.capacity == 48 * GIB and cards.best.file == "Q4_K_M"
    read = cards.best.weights + 2 * 80 * 8 * 128 * 8192 * 2
    assert cards.best.speed == pytest.approx((0.5 * 936e9 / read, 0.85 * 936e9 / read))
    assert advise(SEVENTY, memory="48 GB", hardware="RTX 3090").question.machine.count == 2


def test_seventy_billion_on_a_mac():
    a = advise(SEVENTY, memory="64 GB", hardware="Apple M1 Max")
    assert a.question.machine.capacity == 0.75 * 64 * GIB == pytest.approx(51539.61e6, abs=1e4)
    assert a.best.file == "Q4_K_M" and a.served is None
    assert a.best.prompt == pytest.approx(
        (0.4 * 10.4e12 / 141.107e9, 0.8 * 10.4e12 / 141.107e9), 1e-4
    )
    assert "75 % of the memory may be taken by a model" in a.assumptions
    assert advise(SEVENTY, hardware="Apple M4 Max 64GB").best.prompt is None  # Apple says no FLOP/s


def test_eight_billion_on_8_gb():
    a = advise("llama-3.1-8b", memory="8 GB")
    assert a.best.file == "Q5_K_M"
    assert a.best.need == pytest.approx(5.725e9 + 32 * 2 * 1024 * 2 * 8192 + 0.7627e9, rel=1e-3)
    assert a.roomy.file == "Q4_K_M" and a.roomy.room == 17_734
    long = advise("llama-3.1-8b", memory="8 GB", context=16_384)
    assert long.best.file == "Q4_K_M"
    assert advise("llama-3.1-8b", memory="8 GB", context=16_384, kv_bits=8.5).best.file == "Q5_K_M"


def test_seventy_billion_on_an_h100():
    """8 bits fit with little room, 4 bits with much: both are said."""
    a = advise(SEVENTY, hardware="H100")
    assert (a.best.file, a.served.file, a.roomy.file) == ("Q8_0", "FP8", "Q4_K_M")
    assert a.best.weights == pytest.approx(74.97e9, rel=1e-3)
    assert a.served.weights == pytest.approx(72.69e9, rel=1e-3)
    notes = " ".join(a.notes)
    assert f"FP8, 76.13 GB, room for {a.served.room:,} tokens; AWQ 4-bit has room for" in notes
    assert f"Q4_K_M has room for {a.roomy.room:,} tokens" in notes and "NVFP4" not in str(a)
    assert any("0.652" in words for words, _ in a.evidence)
    assert "NVFP4" in str(advise("8B", hardware="RTX 5090"))


def test_deepseek():
    a = advise("deepseek-v3", memory="24 GB")
    assert a.best is None and "nothing fits" in a.headline
    assert "671,000,000,000 × 4 / 8 = 335.50 GB" in "\n".join(a.arithmetic)
    assert a.question.token == 61 * (512 + 64) * 2
    assert "more than the 206.16 GB" in " ".join(a.notes)
    fast = advise("deepseek-v3", memory="512 GB", hardware="Apple M3 Ultra")
    read = fast.best.weights * 37 / 671 + fast.question.cache
    assert fast.best.read == pytest.approx(read) and fast.best.seconds == pytest.approx(
        read / 819e9
    )
    many = advise("deepseek-v3", memory="512 GB", hardware="Apple M3 Ultra", batch=64, context=64)
    assert many.best.read == many.best.weights + many.question.cache  # all experts may be woken


def test_a_phone():
    a = advise("llama-3.2-3b", memory="8 GB", hardware="phone")
    assert a.question.machine.capacity == 4 * GIB and a.best.file == "Q5_K_M"
    assert any("fragile" in words and "secondary" in source for words, source in a.evidence)


def test_high_stakes_take_8_bits_or_nothing():
    a = advise(SEVENTY, memory="2x24 GB", task="high stakes")
    assert a.best is None and of(a, "Q4_K_M").fits and "8 bits that 'high stakes'" in a.headline
    assert a.smaller.file == "Q8_0" and a.smaller.fits
    assert advise("llama-3.1-8b", memory="12 GB", task="high stakes").best.file == "Q8_0"
    served = advise(SEVENTY, hardware="RTX 4090", task="high stakes")
    assert served.served is None


def test_a_benchmark_keeps_the_float_model():
    assert advise("llama-3.1-8b", memory="24 GB", task="benchmark").best.file == "BF16"
    a = advise("llama-3.1-8b", memory="12 GB", task="benchmark")
    assert a.best is None and "16 bits" in a.headline
    assert any("paired error bars" in words for words, _ in a.evidence)


@pytest.mark.parametrize("task", ["math", "multilingual"])
def test_sensitive_tasks_warn(task):
    a = advise(SEVENTY, memory="2x24 GB", task=task)
    assert a.best.file == "Q4_K_M" and f"{task}: 5 bits or more would be better" in " ".join(
        a.notes
    )
    assert any(source == TASKS[task].source for _, source in a.evidence)


# ---- properties

names = st.sampled_from(sorted(SHAPES))
memories = st.floats(0.25, 2000).map(lambda x: round(x, 3))
contexts = st.integers(1, 200_000)
tasks = st.sampled_from(sorted(TASKS))


def bits(answer):
    return answer.best.bits if answer.best else 0.0


@given(names, memories, memories, contexts, tasks)
def test_more_memory_never_gives_fewer_bits(name, one, two, context, task):
    less, more = sorted((one, two))
    answers = [advise(name, memory=m, context=context, task=task) for m in (less, more)]
    assert bits(answers[0]) <= bits(answers[1])


@given(names, memories, contexts, contexts, st.integers(1, 64))
def test_a_longer_context_never_gives_more_bits(name, memory, one, two, batch):
    short, long = sorted((one, two))
    answers = [advise(name, memory=memory, context=c, batch=batch) for c in (short, long)]
    assert bits(answers[0]) >= bits(answers[1])
    assert bits(advise(name, memory=memory, context=short)) >= bits(answers[0])


@given(names, memories, contexts, tasks)
def test_what_is_said_is_so(name, memory, context, task):
    a = advise(name, memory=memory, context=context, task=task)
    better = [f for f in a.fits if f.gguf][: len(FILES) if a.best is None else a.fits.index(a.best)]
    assert all(not f.fits or f.nominal < TASKS[task].floor for f in better)
    if a.best is None or a.best.bits < WORN:
        assert "smaller model" in a.headline
    if a.best:
        assert a.best.fits and a.best.room >= min(context, a.question.shape.longest)
        assert a.best.nominal >= (TASKS[task].floor if TASKS[task].hard else 0)
    if a.smaller:
        assert a.smaller.fits and a.smaller.question.shape.params < a.question.shape.params
    assert all(words and source and "[U]" not in words + source for words, source in a.evidence)
    assert not re.search(r"nan|inf\b|-\d", " ".join(a.arithmetic))


@given(st.sampled_from(sorted(HARDWARE)), contexts, contexts)
def test_a_longer_context_is_never_faster(hardware, one, two):
    device = HARDWARE[hardware]
    machine = machine_of(f"{device.sizes[-1]} GB", hardware)
    short, long = (
        fit("Q4_K_M", Question(SHAPES["llama-3.1-8b"], machine, c)) for c in sorted((one, two))
    )
    assert short.speed[0] >= long.speed[0] and short.speed[0] < short.speed[1]
    assert short.speed[1] <= 0.85 * device.bandwidth / short.weights


def test_a_large_batch_is_bound_by_flops():
    q = Question(SHAPES["llama-3.1-8b"], machine_of(None, "H200"), 1, 4096)
    f = fit("Q4_K_M", q)
    assert f.seconds == pytest.approx(2 * 8_030_261_248 * 4096 / 989.4e12)


# ---- tables, words, errors


def test_efficiencies_enclose_what_was_measured():
    assert all(EFFICIENCY[0] <= anchor.efficiency <= EFFICIENCY[1] for anchor in ANCHORS)
    opt = 4 * 512 * 2 * 30e9 / 659.9e-3 / 312e12
    mac = 599.53 * 2 * SHAPES["llama-2-7b"].params / 10.4e12
    assert PREFILL[0] < opt < mac < PREFILL[1]
    assert f"{100 * opt:.0f} %" in PREFILL_WORDS[0] and f"{100 * mac:.0f} %" in PREFILL_WORDS[0]
    ppls = [LOSSES[file][0] for file in FILES if file in LOSSES]
    kls = [LOSSES[file][1] for file in FILES if file in LOSSES]
    assert ppls == sorted(ppls) and kls == sorted(kls)
    assert set(NOMINAL) == {*FILES, *SERVED}
    assert [NOMINAL[f] for f in FILES] == sorted((NOMINAL[f] for f in FILES), reverse=True)


def test_sources_say_what_they_were_compared_with():
    """Or that they were not; and what follows from a bus is computed again."""
    for item in (*SHAPES.values(), *HARDWARE.values()):
        assert re.search("compared with|bits: bytes|channels: bytes", item.source), item.name
    words = r"DDR\dX?-(\d+)(?: on (\d+) bits|, (\d) channels)"
    found = {d.name: re.search(words, d.source) for d in HARDWARE.values()}
    assert sum(map(bool, found.values())) == 6
    for name, bus in found.items():
        if bus:
            bits = int(bus[2] or 64 * int(bus[3]))
            assert HARDWARE[name].bandwidth == pytest.approx(int(bus[1]) * 1e6 * bits / 8, rel=3e-3)


def test_memory_is_read():
    assert memory_of("2x24 GB") == (2, 24e9, False) and memory_of("2 × 24GiB") == (
        2,
        24 * GIB,
        True,
    )
    assert memory_of(24) == memory_of("24") == memory_of("24 GB") == (1, 24e9, False)
    assert machine_of(None, "RTX 3060").each == 12 * GIB
    assert machine_of("24 GiB", None).capacity == 24 * GIB
    assert machine_of(None, "4x H100").capacity == 4 * 80 * GIB


@pytest.mark.parametrize(
    "arguments,words",
    [
        ((SEVENTY,), "say a memory"),
        ((SEVENTY, "24 apples"), "24 apples"),
        ((SEVENTY, "0 GB"), "0 GB"),
        ((SEVENTY, None, "RTX 4080"), "did you mean 'RTX"),
        ((SEVENTY, None, "Apple M4 Max"), "48 or 64 or 128 GiB"),
        ((SEVENTY, "512 GB", "Apple M4 Max"), "at most 128 GiB, not '512 GB'"),
        ((SEVENTY, "24 GB", "2x RTX 3090"), "give one"),
        (("llama-3.1-7b", "24 GB"), "did you mean 'llama-3.1-70b'|did you mean 'llama-3.1-8b'"),
        ((70, "24 GB"), "70 parameters"),
        ((SEVENTY, "24 GB", None, 0), "context 0"),
        ((SEVENTY, "24 GB", None, 8192, 1.5), "batch 1.5"),
        ((SEVENTY, "24 GB", None, 8192, 1, "chat"), "'chat'"),
        ((SEVENTY, "24 GB", None, 8192, 1, "math", 0), "kv_bits 0"),
    ],
)
def test_errors_name_what_there_is(arguments, words):
    with pytest.raises(ValueError, match=words):
        advise(*arguments)
    with pytest.raises(ValueError, match="Q4_K_X"):
        file_bits("Q4_K_X", SHAPES[SEVENTY])


def test_sizes_take_the_nearest_shape():
    for said in ("70B", "70b", 70e9, "70,000,000,000", "70000M"):
        assert shape_of(said).params == 70e9 and shape_of(said).like == SEVENTY
    a = advise("7B", memory="8 GB")
    assert "as in llama-3.1-8b, the nearest in size" in " ".join(a.assumptions)
    assert shape_of(shape_of("13B")).like == "qwen2.5-14b"
    assert smaller(Question(shape_of("smollm2-135m"), machine_of(24, None))) is None


def test_shown_as_text_and_as_html():
    a = advise(SEVENTY, hardware="H100")
    text, page = str(a), a._repr_html_()
    rows = [line for line in text.splitlines() if re.match(r"[▸ ] \w", line)]
    assert len(rows) == len(a.fits) and sum(line.startswith("▸") for line in rows) == 2
    assert len({len(line) for line in rows}) == 1
    for words, source in a.evidence:
        assert words in text and source in text
    assert page.count("<tr") == len(a.fits) + 1 and "&#x27;" in page
    assert repr(a) == f"<Advice: {a.headline}>"
    assert qlab.advise is advise


def test_the_sum_in_the_text_is_the_sum():
    """Every printed product is recomputed from its printed factors."""
    for line in advise("llama-3.1-8b", hardware="RTX 4060").arithmetic:
        if line.startswith("weights"):
            count, bits_, gigabytes = re.search(
                r": ([\d,]+) × ([\d.]+) .* = ([\d.]+)", line
            ).groups()
            assert int(count.replace(",", "")) * float(bits_) / 8e9 == pytest.approx(
                float(gigabytes), abs=0.006
            )
        if line.startswith("longest context"):
            *parts, tokens = re.findall(r"[\d,]{3,}", line)
            memory, weights, reserve, each, tokens = (
                int(x.replace(",", "")) for x in (*parts, tokens)
            )
            assert math.floor((memory - weights - reserve) / each) == pytest.approx(tokens, abs=1)


def test_functions_are_short():
    for name in ("advice", "advise", "evidence", "fits", "machines", "mixtures", "shapes"):
        file = Path(qlab.__file__).parent / "evaluation" / f"{name}.py"
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - (body[0].lineno if body else node.lineno) + 1
                assert lines <= 40, f"{name}.{node.name} has {lines} lines"
