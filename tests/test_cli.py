"""The command line: help a person can follow, one red sentence for an error, exit code 2."""

import json
import platform
import subprocess
import sys

import jax
import pytest

import qlab
from qlab.cli import _ranges, _settings, _texts, main
from qlab.formats import INT4
from tests.models_for_tests import random_model

COMMANDS = ["demo", "evaluate", "compare", "quantize", "imatrix", "inspect", "explain", "lab"]
COMMANDS += ["figures", "advise", "qat", "bench"]


def said(capsys, *arguments):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0 and all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    code, out, _ = said(capsys, command, "--help")
    assert code == 0 and "Usage" in out and len(out.splitlines()) > 5


def test_version(capsys):
    code, out, err = said(capsys, "--version")
    versions = [qlab.__version__, jax.__version__, platform.python_version()]
    assert (code, err) == (0, "")
    assert out == "qlab {}, jax {}, Python {}\n".format(*versions)


def test_explain(capsys):
    code, out, _ = said(capsys, "explain", "int4_g64")
    assert code == 0 and "4.25" in out


def test_advise(capsys):
    code, out, _ = said(capsys, "advise", "70B", "--memory", "2x24 GB", "--context", "4096")
    assert code == 0 and "take Q4_K_M" in out and "4,096 tokens × 1 = 1.34 GB" in out
    code, out, _ = said(capsys, "advise", "tiny", "--memory", "1 GB", "--kv-bits", "8.5")
    assert code == 0 and "as loaded" in out


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["explain", "int4_g65"], ["int4_g65", "int4_g64"]),
        (["evaluate", "tyni", "--tokens", "512"], ["tyni", "tiny"]),
        (["evaluate", "tiny", "--text", "englsh"], ["englsh", "english"]),
        (["evaluate", "tiny", "--tokens", "100", "--context", "256"], ["100", "256"]),
        (["evaluate", "tiny", "--tokens", "512", "--protocol", "gtpq"], ["gtpq", "gptq"]),
        (["evaluate", "tiny", "--tokens", "many"], ["--tokens", "integer", "--help"]),
        (["explan", "int4_g64"], ["explan", "--help"]),
        (["advise", "70B"], ["memory", "RTX 4090"]),
        (["advise", "70B", "--hardware", "RTX 409"], ["RTX 409", "RTX 4090"]),
        (["advise", "70B", "--memory", "lots"], ["lots", "24 GB"]),
        (["advise", "llama-3.1-70", "--memory", "9"], ["llama-3.1-70b", "70B"]),
        (["advise", "70B", "--memory", "9", "--task", "maths"], ["maths", "math"]),
        (["bench", "tyni"], ["tyni", "tiny"]),
        (["bench", "tiny", "--batch", "1,four"], ["1,four", "1,4,16"]),
        (["bench", "tiny", "--batch", "1,0"], ["batch 0 is less than 1"]),
        (["bench", "tiny", "--context", "300"], ["300", "256", "tiny"]),
        (["bench", "tiny", "--kernels"], ["tiny", "--spec int4_g64"]),
        (["bench", "tiny", "--spec", "int4_g65"], ["int4_g65", "int4_g64"]),
        (["bench", "tiny", "--kv", "kivi3"], ["kivi3", "kivi4"]),
        (["inspect", "no_such_file.gguf"], ["no_such_file.gguf"]),
        (["inspect", "tiny", "--plan", "Q4_KM"], ["Q4_KM", "Q4_K_M"]),
        (["quantize", "tiny", "-o", "x"], ["--spec", "--to"]),
        (["quantize", "tiny", "--to", "Q4_K_M", "-o", "x"], ["x does not end in .gguf"]),
        (["quantize", "tiny", "--to", "Q4_K_M", "--spec", "q8_0", "-o", "x.gguf"], ["--spec"]),
        (["quantize", "tiny", "--to", "F16", "--as-stored", "-o", "x.gguf"], ["tiny", "smollm2"]),
        (["quantize", "tiny", "--to", "Q4_KM", "-o", "x.gguf"], ["Q4_KM", "Q4_K_M"]),
    ],
)
def test_errors_are_one_sentence(arguments, words, capsys):
    code, out, err = said(capsys, *arguments)
    assert code == 2 and "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="int4_g65"):
        main(["explain", "int4_g65", "--debug"])


def test_python_m_qlab_exits_with_two():
    done = subprocess.run(
        [sys.executable, "-m", "qlab", "explain", "int4_g65"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "int4_g64" in done.stderr and done.stdout == ""


def test_quantize_inspect_evaluate_compare(tmp_path, capsys):
    folder, a, b = tmp_path / "q", tmp_path / "a.json", tmp_path / "b.json"
    code, out, err = said(capsys, "quantize", "tiny", "--spec", "int4_g64", "-o", str(folder))
    assert code == 0 and "4.250 bits per weight of the linears, 11.199 of the whole" in out, err
    code, out, err = said(capsys, "inspect", str(folder))
    assert code == 0 and "int4_g64" in out and "down_proj" in out and "MB packed" in out, err
    words = qlab.evaluation.memory.size(qlab.load(folder)).words  # the same in both commands
    assert words == "4.250 bits per weight of the linears, 11.199 of the whole model"
    assert f"together: {words}" in out
    few = ["--text", "english", "--tokens", "512", "--context", "64"]
    code, out, err = said(
        capsys, "evaluate", str(folder), "--reference", "tiny", *few, "--json", str(a)
    )
    assert code == 0 and "top-1" in out, err
    assert json.loads(a.read_text())["rows"][0]["texts"][0]["kl"]["value"] > 0
    code, out, err = said(capsys, "evaluate", "tiny", "--spec", "int4_g64", *few, "--json", str(b))
    assert code == 0 and "int4_g64" in out, err
    code, out, err = said(capsys, "compare", str(a), str(b))
    assert code == 0 and out.count("int4_g64") >= 1, err
    same = [json.loads(f.read_text())["rows"][i]["texts"][0]["ppl"] for f, i in ((a, 0), (b, 1))]
    assert same[0] == same[1], "the saved model is not the one that was evaluated"
    code, out, err = said(capsys, "evaluate", "tiny", "--tokens", "512", "--context", "128",
                          "--json", str(b))  # fmt: skip
    assert said(capsys, "compare", str(a), str(b))[0] == 2


def test_bench_writes_what_it_measured(tmp_path, capsys):
    file = tmp_path / "bench.json"
    few = ["--context", "8", "--new-tokens", "2", "--rounds", "1", "--json", str(file)]
    arguments = ["bench", "tiny", "--spec", "int4_g64", "--kernels", "--batch", "1,2", *few]
    arguments += ["--kv", "kivi4"]
    code, out, err = said(capsys, *arguments)
    assert code == 0 and "tiny rtn int4_g64, kernels" in out and "of roof" in out, err
    found = qlab.evaluation.Bench.from_dict(json.loads(file.read_text()))
    assert [(row.model, row.batch) for row in found.rows] == [
        ("tiny", 1), ("tiny", 2), ("tiny rtn int4_g64, kernels", 1),
        ("tiny rtn int4_g64, kernels", 2), ("tiny, kivi4", 1), ("tiny, kivi4", 2),
    ]  # fmt: skip
    assert found.context == 8 and found.rows[2].weight_bytes < found.rows[0].weight_bytes
    assert all(len(row.step) == 1 and row.step[0] > 0 for row in found.rows)


def test_a_file_is_a_text(tmp_path, capsys):
    file = tmp_path / "mine.txt"
    file.write_text("The grid is finite. " * 200)
    code, out, err = said(
        capsys, "evaluate", "tiny", "--text", str(file), "--tokens", "512", "--context", "64"
    )
    assert code == 0 and "mine" in out, err


def test_texts_of_one_name_are_told_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text(folder)
    a, b = str(tmp_path / "a" / "mine.txt"), str(tmp_path / "b" / "mine.txt")
    assert _texts([a, b, a]) == {a: "a", b: "b"}
    assert _texts([a]) == {"mine": "a"}
    own = tmp_path / "english.txt"
    own.write_text("mine")
    found = _texts(["english", str(own)])
    assert list(found) == ["english", str(own)] and found[str(own)] == "mine"


def test_settings_are_values():
    given = {"a": "True", "b": "YES", "c": "on", "d": "false", "e": "No", "f": "OFF", "g": "0.1"}
    words = {"h": "static", "i": "Fresh", "j": "64", "k": "1e-2"}
    found = _settings([f"{name}={text}" for name, text in (given | words).items()])
    assert list(found.values()) == [
        True, True, True, False, False, False, 0.1, "static", "Fresh", 64, 0.01
    ]  # fmt: skip


@pytest.mark.parametrize("cache", [None, "kept"])
def test_ctrl_c_says_how_to_go_on(cache, tmp_path, capsys, monkeypatch):
    def interrupted(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(qlab, "quantize_model", interrupted)
    more = ["--cache", cache] if cache else []
    code, _, err = said(
        capsys, "quantize", "tiny", "--spec", "int4_g64", "-o", str(tmp_path / "q"), *more
    )
    option = " ".join(more) or "--cache"
    line = f"stopped; with {option} the same command goes on from the last finished block\n"
    assert code == 130 and err == line


def test_the_result_is_not_put_among_finished_blocks(tmp_path, capsys):
    same = [str(tmp_path / "q"), str(tmp_path / "x" / ".." / "q")]
    code, _, err = said(
        capsys, "quantize", "tiny", "--spec", "int4_g64", "-o", same[0], "--cache", same[1]
    )
    assert code == 2 and "-o and --cache are both" in err


def test_errors_name_options(tmp_path, capsys, monkeypatch):
    def taken(*_args, **_settings):
        raise ValueError("q is not empty; overwrite=True replaces it")

    monkeypatch.setattr(qlab, "save", taken)
    command = ["quantize", "tiny", "--spec", "int4_g64", "-o", str(tmp_path / "q")]
    code, _, err = said(capsys, *command)
    assert code == 2 and "--overwrite replaces it" in err
    file = tmp_path / "mine.txt"
    file.write_text("a few words")
    code, _, err = said(capsys, *command, "--calibration", str(file))
    assert code == 2 and "--calibration-tokens takes fewer, and --context shorter" in err


def test_one_of_a_thing_has_no_s(capsys):
    """A count of one in a table, in the words of a format, and in an error."""
    code, out, _ = said(capsys, "evaluate", "tiny", "--tokens", "64", "--context", "64")
    assert code == 0 and "1 window, 63 tokens scored" in " ".join(out.split())
    tiny = qlab.load("tiny")
    one = qlab.compare([qlab.evaluate(tiny, texts="english", tokens=64, context=64)], show=False)
    assert "1 row on" in repr(one)
    code, _, err = said(capsys, "evaluate", "tiny", "--tokens", "1")
    assert code == 2 and "a context of 1 token is" in err
    assert "every 1 " not in str(qlab.explain(qlab.Spec(INT4, 1)))


def test_a_plan_names_types_layers_and_what_fell_back(tmp_path, capsys):
    code, out, err = said(capsys, "inspect", "tiny", "--plan", "Q4_K_M")
    assert code == 0 and "every width fits its type" in out, err
    assert "4.801 bits per weight of the linears, 5.256 of the whole file" in " ".join(out.split())
    assert "read only" not in out
    assert any(
        line.split()[:4] == ["attn_v", "128×256", "Q6_K", "2–3"] for line in out.splitlines()
    )
    path = tmp_path / "odd.gguf"
    qlab.save(random_model(), path)
    code, out, err = said(capsys, "inspect", str(path), "--plan", "Q4_K_M")
    assert code == 0 and "Q5_0 for Q4_K" in out, err
    assert "14 of 15 matrices" in " ".join(out.split())
    code, out, err = said(capsys, "inspect", "tiny", "--plan", "IQ2_XS")
    assert code == 0 and "read only: IQ2_XS is planned for its size" in " ".join(out.split()), err
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"


def test_quantize_to_a_gguf_file(tmp_path, capsys):
    source, half = tmp_path / "m.gguf", tmp_path / "half.gguf"
    qlab.save(random_model(), source)
    command = ["quantize", str(source), "--to", "F16", "-o", str(half)]
    code, out, err = said(capsys, *command)
    line = "16.000 bits per weight of the linears, 16.054 of the whole file; every width fits"
    assert code == 0 and line in " ".join(out.split()), (out, err)
    assert {t.type for t in qlab.io.gguf.read(half).tensors.values()} == {"F32", "F16"}
    code, _, err = said(capsys, *command)
    assert code == 2 and "--overwrite replaces it" in err
    assert said(capsys, *command, "--overwrite")[0] == 0
    assert sorted(tmp_path.iterdir()) == [half, source]


def test_imatrix_writes_a_file(tmp_path, capsys):
    path = tmp_path / "i.gguf"
    command = ["imatrix", "tiny", "--calibration-tokens", "512", "-o", str(path)]
    code, out, err = said(capsys, *command)
    assert code == 0 and "28 tensors, 2 chunks of 256 tokens, english" in " ".join(out.split()), err
    assert qlab.io.imatrix.read(path).datasets == ("english",)
    for wrong in (["inspect"], ["quantize", "--to", "Q8_0", "-o", "x.gguf"], ["evaluate"]):
        code, _, err = said(capsys, wrong[0], str(path), *wrong[1:])
        assert code == 2 and "i.gguf is an importance matrix, not a model; give it" in err, err
        assert "--imatrix FILE" in err
    code, _, err = said(capsys, *command)
    assert code == 2 and "--overwrite replaces it" in err


def test_a_quantized_cache_says_what_it_saves(capsys):
    arguments = ["--kv", "kivi2", "--text", "english", "--tokens", "256", "--context", "250"]
    code, out, _ = said(capsys, "evaluate", "tiny", *arguments)
    assert code == 0 and "kv kivi2" in out
    line = next(line for line in out.splitlines() if line.startswith("kivi2: keys and values"))
    # 2 sides × 4 layers × 2 heads × 64 numbers × 2 bytes a token
    assert f"of 250 tokens take 0.3 MB, {250 * 2048 / 1e6:.1f} MB as float16" in line


def test_qat_trains_and_writes(tmp_path, capsys):
    text = tmp_path / "mine.txt"
    text.write_text("the end of the beginning is in a thesis " * 60)
    folder = tmp_path / "q"
    arguments = ["--spec", "int2_g64", "-t", str(text), "--steps", "2", "--batch", "2"]
    arguments += ["--context", "32", "--distill", "--method", "lsq", "-o", str(folder)]
    code, out, _ = said(capsys, "qat", "tiny", *arguments)
    assert code == 0 and "trained by lsq for 2 steps on 128 tokens (tiny as teacher)" in out
    assert qlab.load(str(folder)).label.provenance["hyper"]["steps"] == 2
    code, _, err = said(capsys, "qat", "tiny", *arguments)
    assert code == 2 and "--overwrite replaces it" in err
