"""The scripts of experiments/, end to end on a tiny model and local texts, and without a hub."""

import gzip
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import qlab
from tests.models_for_tests import OPT_CONFIG, random_model, write_hub_folder
from tests.test_golden import GOLDEN

SCRIPT = Path(__file__).resolve().parent.parent / "experiments" / "gptq_opt125m.py"


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("gptq_opt125m", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny random OPT as the hub lays it out, forty documents, and a text of many rows."""
    place = tmp_path_factory.mktemp("experiment")
    folder = place / "opt-tiny"
    write_hub_folder(random_model(OPT_CONFIG, scale=4.0), folder, eos_token_id=2)
    (folder / "tokenizer.json").unlink()  # as facebook/opt-125m has it: two files, no third
    with np.load(GOLDEN / "opt.npz") as golden:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (folder / name).write_bytes(golden[name].tobytes())
    words = random.Random(0)
    with gzip.open(place / "c4.json.gz", "wt") as file:
        for i in range(40):
            text = " ".join(words.choices(["the", "cat", "in", "a", "hat"], k=10 if i % 2 else 40))
            file.write(json.dumps({"text": text, "url": "none"}) + "\n")
    rows = [" \n", " = The cat = \n", " \n"]
    rows += ["".join(words.choices("the cat in a hat ", k=60)) + " \n" for _ in range(40)]
    (place / "wiki.test.raw").write_text("".join(rows))
    return place


def test_end_to_end(script, place, capsys, tmp_path):
    out = tmp_path / "found.json"
    arguments = ["--folder", place / "opt-tiny", "--calibration", place / "c4.json.gz"]
    arguments += ["--evaluation", place / "wiki.test.raw", "--out", out]
    arguments += ["--samples", "6", "--context", "64", "--tokens", "1024"]
    assert script.main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out
    rows = {
        line[:12].strip(): line[12:].split()
        for line in said.splitlines()
        if line[:12].strip() in script.PAPER
    }
    assert list(rows) == list(script.PAPER)
    measured = json.loads(out.read_text())["measured"]
    for name, (paper, here, *_) in rows.items():
        value = measured[name]["texts"][0]["ppl"]["value"]
        assert paper == script.PAPER[name] and here == f"{value:.2f}" != paper
        assert measured[name]["texts"][0]["tokens"] == 16 * 63
    assert re.search(r"perplexity +paper \(OPT-125M\) +here \(measured\)", said)
    assert "not measured here" in said
    for words in (
        "the model is 'opt-tiny'",
        "c4.json.gz",
        "wiki.test.raw",
        "6 segments",
        "float16",
    ):
        assert words in said
    # The models of the rows are those that the library makes of the same parts.
    model = qlab.load(place / "opt-tiny")
    text = "</s>" + script.read_rows(place / "wiki.test.raw")
    spec = qlab.specs.gptq(3, None, sym=False)
    rtn = qlab.quantize_model(model, "rtn", spec, progress=False)
    settings = {"texts": {"text": text}, "context": 64, "tokens": 1024, "progress": False}
    for name, candidate in (("float", model), ("RTN 3", rtn)):
        again = qlab.evaluate(candidate, **settings).texts[0].ppl.value
        assert again == pytest.approx(measured[name]["texts"][0]["ppl"]["value"], rel=1e-6)
    values = [measured[name]["texts"][0]["ppl"]["value"] for name in script.PAPER]
    assert len(set(values)) == 5  # five models were measured, none of them twice


def test_rows_without_gptq_need_no_calibration(script, place, capsys):
    arguments = ["--folder", place / "opt-tiny", "--evaluation", place / "wiki.test.raw"]
    arguments += ["--context", "64", "--tokens", "256", "--rows", "float"]
    assert script.main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().out
    assert "27.65" in said and "37.28" not in said  # no column for a row that was not measured


def test_without_a_hub_it_says_what_is_missing(place):
    """In a process of its own, told to stay offline: one sentence, exit status 2, no number."""
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1';"
        f"os.environ['HF_HOME'] = {str(place / 'no-cache')!r};"
        f"sys.argv = ['gptq_opt125m.py', *sys.argv[1:]];"
        f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    for given, missing in (
        ([], ["facebook/opt-125m", "C4", "WikiText-2", "--folder", "--calibration"]),
        (["--folder", str(place / "opt-tiny")], ["C4", "WikiText-2", "--evaluation"]),
    ):
        done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        (sentence,) = done.stderr.strip().splitlines()
        assert "nothing was measured" in sentence
        assert all(word in sentence for word in missing)
        assert not any(number in sentence for number in ("27.65", "37.28", "31.12", "53.85"))
        if given:
            assert "facebook/opt-125m" not in sentence and "--folder" not in sentence


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"--folder": "nowhere"}, "nowhere"),
        ({"--evaluation": "nowhere.raw"}, "nowhere.raw"),
        ({"--context": "200"}, "gave 0 of 6 segments: the others have no more than 200"),
        ({"--context": "300"}, "300"),
        ({"--tokens": "99999999"}, "fewer than tokens=99999999"),
    ],
)
def test_wrong_arguments_are_one_sentence(change, sentence, script, place, capsys, monkeypatch):
    monkeypatch.setattr(script, "DRAWS", 5)
    arguments = {"--folder": place / "opt-tiny", "--calibration": place / "c4.json.gz"}
    arguments |= {"--evaluation": place / "wiki.test.raw", "--samples": "6", "--context": "64"}
    arguments |= change
    assert script.main([str(word) for pair in arguments.items() for word in pair]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and "27.65" not in said.out + said.err


@pytest.mark.parametrize("name", ["gptq_opt125m", "smoothquant_granularity", "awq_salient"])
def test_a_wrong_model_folder_or_no_hub_is_one_line(name, place, tmp_path):
    """In a process of its own: exit status 2, nothing on stdout, no traceback."""

    def said(*arguments):
        command = [sys.executable, SCRIPT.with_name(f"{name}.py"), *map(str, arguments)]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "no-cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        (line,) = done.stderr.strip().splitlines()
        return line

    def changed(file, text):
        folder = tmp_path / f"no-{file}"
        shutil.copytree(place / "opt-tiny", folder)
        (folder / file).write_text(text)
        return folder

    option = "--folder" if name == "gptq_opt125m" else "--model"
    assert "nothing was measured" in said("--model", "no/such-model")
    assert "nowhere" in said(option, tmp_path / "nowhere")
    assert "no config.json" in said(option, tmp_path)
    facts = json.loads((place / "opt-tiny" / "config.json").read_text())
    wrong = json.dumps({**facts, "num_hidden_layers": None})
    assert "num_hidden_layers is None" in said(option, changed("config.json", wrong))
    (place / "no-tokenizer").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(place / "opt-tiny" / file, place / "no-tokenizer")
    texts = ["--calibration", place / "c4.json.gz", "--evaluation", place / "wiki.test.raw"]
    given = texts if name == "gptq_opt125m" else []
    assert "no tokenizer" in said(option, place / "no-tokenizer", *given)
    shutil.rmtree(place / "no-tokenizer")


def test_a_damaged_text_is_one_sentence(script, place, capsys, tmp_path):
    whole = (place / "c4.json.gz").read_bytes()
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.jsonl").write_text('{"words": "the cat"}\n')
    (tmp_path / "wiki.zip").write_text("no archive")
    for option, file in (
        ("--calibration", "cut.json.gz"),
        ("--calibration", "other.jsonl"),
        ("--evaluation", "wiki.zip"),
    ):
        given = {"--folder": place / "opt-tiny", "--calibration": place / "c4.json.gz"}
        given |= {"--evaluation": place / "wiki.test.raw", option: tmp_path / file}
        assert script.main([str(word) for pair in given.items() for word in pair]) == 2
        assert f"{file} cannot be read" in capsys.readouterr().err


def original_segments(documents, tokenize, samples, context, seed):
    """The draws of IST-DASLab/gptq's get_c4, told again with Python's global generator."""
    random.seed(seed)
    found = []
    for _ in range(samples):
        while True:
            ids = tokenize(documents[random.randint(0, len(documents) - 1)])
            if len(ids) >= context:
                break
        first = random.randint(0, len(ids) - context - 1)
        found.append(ids[first : first + context])
    return np.array(found)


def test_segments_are_the_originals(script, place):
    documents = script.read_documents(place / "c4.json.gz")
    assert len(documents) == 40 and all(isinstance(text, str) for text in documents)
    tokenizer = qlab.load(place / "opt-tiny").tokenizer
    lengths = {len(tokenizer.encode(text, special=True)) for text in documents}
    assert 64 not in lengths and min(lengths) < 64 < max(lengths)  # some are drawn again
    found = script.segments(documents, tokenizer, 9, 64)
    encode = lambda text: tokenizer.encode(text, special=True)  # noqa: E731
    np.testing.assert_array_equal(found, original_segments(documents, encode, 9, 64, 0))
    assert found.shape == (9, 64) and found.dtype == np.int32


def test_a_document_of_exactly_the_context_is_drawn_again(script, place):
    """The original stops with an error there."""
    tokenizer = qlab.load(place / "opt-tiny").tokenizer
    exact, longer = tokenizer.decode([70] * 19), tokenizer.decode([70] * 20)
    ids = script.segments([exact, longer], tokenizer, 8, 20)
    assert ids.shape == (8, 20) and (ids[:, 0] == 2).all()


def test_rows_are_joined_as_the_dataset_has_them(script, tmp_path):
    """Rows keep the end of their line, empty ones are empty: what `"\\n\\n".join` of WikiText's
    rows gives."""
    raw = " \n = Title = \n \nsome words \nmore \n"
    (tmp_path / "w.raw").write_text(raw)
    expected = "\n\n".join(["", " = Title = \n", "", "some words \n", "more \n"])
    assert script.read_rows(tmp_path / "w.raw") == expected
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("wikitext-2-raw/wiki.train.raw", "no")
        archive.writestr("wikitext-2-raw/wiki.test.raw", raw)
    assert script.read_rows(tmp_path / "w.zip") == expected


def test_plain_text_is_one_document(script, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert script.read_documents(tmp_path / "a.txt") == ["one\n\ntwo\n"]
