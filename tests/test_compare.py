"""`compare` shows what is comparable in one table and refuses the rest by name."""

import dataclasses
import json
import re

import numpy as np
import pytest
from test_evaluation import quantized, run, small

from qlab.evaluation import Evaluation, compare, paired_difference, unpaired_difference


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("QLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    model = small()
    q4, q2 = quantized(model), quantized(model, "int2_g64", "int2")
    yield [run(m, model) for m in (model, q4, q2)]
    patch.undo()


def change(row, field, value):
    """A copy of a row with one field of its protocol or its text replaced."""
    if field in {f.name for f in dataclasses.fields(row.protocol)}:
        return dataclasses.replace(
            row, protocol=dataclasses.replace(row.protocol, **{field: value})
        )
    text = dataclasses.replace(row.texts[0], **{field: value})
    return dataclasses.replace(row, texts=(text,))


@pytest.mark.parametrize(
    "field,value,words",
    [
        ("text_hash", "0" * 64, ["text 'mixed'", "000000000000"]),
        ("name", "llama.cpp", ["protocol", "gptq", "llama.cpp"]),
        ("context", 128, ["context", "64", "128"]),
        ("tokens", 999, ["scored tokens", "504", "999"]),
        ("tokenizer", "f" * 40, ["tokenizer", "bytesbytesby", "ffffffffffff"]),
        ("reference_hash", "e" * 64, ["reference", "float", "eeeeeeeeeeee"]),
    ],
)
def test_refuses_what_is_not_comparable(rows, field, value, words):
    with pytest.raises(ValueError) as caught:
        compare([rows[0], change(rows[1], field, value)])
    for word in [*words, "'float'", "'int4'"]:
        assert word in str(caught.value)


def test_refuses_other_texts_and_nothing(rows):
    other = dataclasses.replace(rows[1], texts=(dataclasses.replace(rows[1].texts[0], name="b"),))
    with pytest.raises(ValueError, match="texts differs, mixed and b"):
        compare([rows[0], other])
    with pytest.raises(ValueError, match="no rows"):
        compare([])
    alone = change(change(rows[1], "reference", None), "reference_hash", None)
    with pytest.raises(ValueError, match="reference differs.*none"):
        compare([rows[0], alone])


def test_prints_one_aligned_table(rows, capsys):
    compare(rows)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.strip()]
    heads = [line for line in lines if "KL 99.9 %" in line]
    assert len(heads) == 1
    body = [line for line in lines if re.match(r"\s+(float|int4|int2) .*±", line)]
    assert len(body) == 3 and len({len(line.rstrip()) for line in body}) == 1, said
    assert "32.000" in body[0] and "±" in body[1]
    assert "8 windows, 504 tokens scored" in said
    assert "rounded" in said and "random weights" in said  # the models' notes, each once
    assert said.count("rounded") == 1
    assert "bootstrap" in said and "gptq" in said


def test_shows_itself_elsewhere(rows, capsys):
    table = compare(rows, show=False)
    assert capsys.readouterr().out == ""
    page = table._repr_html_()
    assert page.count("<tr>") == 1 + 1 + 3 and "int2" in page
    frame = table.to_pandas()
    assert list(frame["model"]) == ["float", "int4", "int2"] and frame["kl"].is_monotonic_increasing
    assert "| int4 |" in table.to_markdown()
    assert table.to_dict()["rows"][2]["name"] == "int2"
    assert "<table>" in rows[0]._repr_html_()


def test_little_text_is_said(rows):
    model = small()
    said = str(compare([run(model, model, tokens=256)], show=False))
    assert "no bars: too little text" in said


def test_any_two_rows_can_be_paired(rows):
    paired = paired_difference(rows[1], rows[2], "mixed")
    apart = unpaired_difference(rows[1], rows[2], "mixed")
    gap = rows[2]["mixed"].dlnppl.value - rows[1]["mixed"].dlnppl.value
    assert paired.value == pytest.approx(gap) == pytest.approx(apart.value)
    assert paired.bar is not None and apart.bar is not None
    same = paired_difference(rows[1], rows[1], "mixed")
    assert (
        same.value == 0 and same.bar == 0 and unpaired_difference(rows[1], rows[1], "mixed").bar > 0
    )


def test_divergences_are_paired_too(rows):
    paired = paired_difference(rows[1], rows[2], "mixed", of="kl")
    a, b = (row["mixed"] for row in rows[1:])
    assert paired.value == pytest.approx(b.kl.value - a.kl.value)
    each = np.array(b.window_kl) - np.array(a.window_kl)
    assert paired.bar == pytest.approx(each.std(ddof=1) / np.sqrt(len(each)), rel=0.1)
    assert np.mean(b.window_kl) == pytest.approx(b.kl.value)
    with pytest.raises(ValueError, match="no difference of 'kll': did you mean 'kl'"):
        paired_difference(rows[1], rows[2], "mixed", of="kll")


def test_bits_say_of_what(rows):
    notes = " ".join(compare(rows, show=False).notes())
    whole = rows[1].size.whole.bits_per_weight
    linears = rows[1].size.linears.bits_per_weight
    said = f"{linears:.3f} bits per weight of the linears, {whole:.3f} of the whole model"
    assert whole > linears and said in repr(rows[1])
    assert f"the whole model, tables and norms too: float 32.000, int4 {whole:.3f}" in notes


def test_rows_without_windows_of_kl_still_load_and_say_so(rows):
    kept = rows[1].to_dict()
    for text in kept["texts"]:
        del text["window_kl"]
    del kept["size"]["whole"]
    old = Evaluation.from_dict(json.loads(json.dumps(kept)))
    assert old.size.whole is None and old.size.words.endswith("of the linears")
    assert old["mixed"].window_kl is None and old["mixed"].kl == rows[1]["mixed"].kl
    with pytest.raises(ValueError, match="'int4' has no kl of single windows on 'mixed'"):
        paired_difference(rows[2], old, "mixed", of="kl")
    assert paired_difference(rows[2], old, "mixed").value != 0
