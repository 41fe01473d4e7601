"""The literals: published bits per weight, and the golden error table within ±2 %."""

import jax.numpy as jnp
import numpy as np
import pytest

from qlab import specs
from qlab.describe import sentence
from qlab.formats import INT4, UINT4
from qlab.qtensor import bits_per_weight, dequantize, quantize
from qlab.rules import minmax
from qlab.specs import SPECS, TABLE, explain, find, name_of

# Relative error ‖w − ŵ‖ / ‖w‖ of 256 × 4096 numbers: numpy's default_rng(0), then standard_normal,
# standard_t(4) and laplace drawn one after the other. The values were measured on independent
# implementations (C and numpy).
GOLDEN = {
    "q8_0": (0.00535, 0.00737, 0.00673),
    "q5_1": (0.03784, 0.04562, 0.04438),
    "q5_0": (0.04272, 0.05786, 0.05349),
    "q4_1": (0.07816, 0.09385, 0.09174),
    "q4_0": (0.08596, 0.11535, 0.10674),
    "mxfp4": (0.11499, 0.13102, 0.12677),
    "nvfp4_ggml": (0.09508, 0.09160, 0.09280),
    "nvfp4": (0.09502, 0.09152, 0.09272),
    "nf4": (0.09192, 0.11097, 0.10366),
    "int8_g128": (0.00647, 0.01100, 0.00894),
    "int4_g128": (0.11744, 0.19242, 0.16022),
    "uint4_g128": (0.10059, 0.14492, 0.13033),
    "int3_g128": (0.27404, 0.41199, 0.35634),
    "uint3_g128": (0.21560, 0.30376, 0.27271),
    "int2_g128": (0.76712, 0.78925, 0.78367),
    "uint2_g128": (0.50344, 0.60330, 0.56646),
    "uint8_g128": (0.00592, 0.00860, 0.00772),
    "fp8_tensor": (0.02648, 0.02636, 0.02645),
    "fp8_e5m2_tensor": (0.05266, 0.05239, 0.05283),
}
# With ggml's searches. Plain rounding into the same containers is worse; it must at least come
# within a quarter.
SEARCHED = {
    "q6_k": (0.01772, 0.02283, 0.02169),
    "q5_k": (0.03610, 0.04385, 0.04278),
    "q4_k": (0.07129, 0.08649, 0.08450),
    "q3_k": (0.15092, 0.18267, 0.17616),
    "q2_k": (0.29669, 0.34150, 0.34401),
    "iq4_nl": (0.07610, 0.09321, 0.08788),
    "iq4_xs": (0.07669, 0.09423, 0.08859),
}


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    shape = (256, 4096)
    numbers = rng.standard_normal(shape), rng.standard_t(4, shape), rng.laplace(size=shape)
    return [jnp.asarray(x, jnp.float32) for x in numbers]


def errors(name, draws):
    spec = SPECS.get(name) or specs.gptq(int(name[4]), 128, sym=False)
    found = [dequantize(quantize(w, spec)) - w for w in draws]
    return [float(jnp.linalg.norm(e) / jnp.linalg.norm(w)) for e, w in zip(found, draws)]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_errors(name, draws):
    np.testing.assert_allclose(errors(name, draws), GOLDEN[name], rtol=0.02)


@pytest.mark.parametrize("name", SEARCHED)
def test_plain_rounding_into_searched_containers(name, draws):
    ratio = np.array(errors(name, draws)) / SEARCHED[name]
    assert (ratio > 1).all() and (ratio < 1.25).all(), ratio


@pytest.mark.parametrize("name", TABLE)
def test_published_bits_per_weight(name):
    entry = TABLE[name]
    assert bits_per_weight(entry.spec) == pytest.approx(entry.bits, abs=1e-12)
    assert len(entry.source) > 3
    large = quantize(
        jnp.ones((256, 512)), entry.spec
    )  # once-a-row costs, and nothing else, come on top
    assert 0 <= bits_per_weight(large) - entry.bits < 0.2


def test_no_two_names_mean_the_same():
    assert len(set(SPECS.values())) == len(SPECS)


def test_builders():
    assert specs.gptq(4, 128) == SPECS["gptq4_sym"]
    assert specs.gptq(4, sym=False) == SPECS["uint4_channel"].replace(block="row")
    assert specs.awq(4, 128) == SPECS["awq_g128"] and specs.hqq(4, 64) == SPECS["hqq4_g64"]
    assert specs.awq(3, None, sym=True).block == "row" and specs.gptq(8).format.name == "INT8"
    for build in (specs.gptq, specs.awq, specs.hqq):
        with pytest.raises(ValueError, match="not 1"):
            build(1)


def test_names():
    assert find("nf4") is SPECS["nf4"] and name_of(SPECS["nf4"]) == "nf4"
    assert name_of(SPECS["nf4"].replace(block=32)) == "NF4, block 32"
    with pytest.raises(ValueError, match="did you mean 'mxfp4'"):
        find("mxpf4")
    with pytest.raises(ValueError, match="known are"):
        find("?")


@pytest.mark.parametrize("name", TABLE)
def test_explanations(name):
    text = str(explain(name))
    sentence, total = text.split("\n")[0], f"{TABLE[name].bits:g} bits per weight"
    assert sentence.startswith("Each weight is a") and sentence.endswith(".")
    assert total in text and TABLE[name].source in text
    page = explain(name)._repr_html_()
    assert "<svg" in page and "aria-label" in page and total in page


def test_explain_takes_specs_and_tensors():
    assert explain(SPECS["q4_k"]).name == "q4_k" and explain(INT4_G96).name is None
    q = quantize(jnp.ones((2, 64)), SPECS["int4_g64"])
    assert explain(q).name == "int4_g64"
    assert "4 + 6/32 + 16/256 + 6/32 + 16/256 = 4.5 bits" in str(explain("q4_k"))
    for name in ("q2_k", "q4_k", "q5_k"):  # ggml keeps −min as positive codes, and subtracts
        assert sentence(SPECS[name]).endswith("and the weight is scale · value − minimum.")
    for name in ("q4_1", "q5_1"):  # and adds these
        assert sentence(SPECS[name]).endswith("and the weight is scale · value + offset.")
    own = SPECS["q4_k"].replace(rule=minmax)
    assert sentence(own).endswith("+ offset.")  # another rule may leave positive minima
    assert "QTensor 2 × 64" in q._repr_html_() and "68 bytes" in q._repr_html_()


INT4_G96 = specs.Spec(INT4, 96, "bfloat16", zero=UINT4)
