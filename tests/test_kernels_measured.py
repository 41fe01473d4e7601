"""What measures the kernels, where nothing can be measured: the programs run on tiny sizes, the
choice of tiles follows the times it is given, and without an accelerator each says so.
"""

import json
import subprocess
import sys
from functools import partial

import jax
import pytest

from benchmarks import kernels, kernels_gpu, kernels_hopper, kernels_tune
from benchmarks.kernels_tune import Case
from qlab.kernels import tilings
from qlab.kernels.tilings import GpuTile, Tile


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    kernels.main()


def test_the_gpu_program_runs_on_tiny_sizes(monkeypatch, tmp_path):
    """The first run on a real GPU must not end in a typo."""
    monkeypatch.setattr(kernels_gpu, "refusal", lambda: None)
    monkeypatch.setattr(kernels_gpu, "Sizes", lambda: kernels_gpu.TINY)
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    run(monkeypatch, "--gpu")
    found = json.loads((tmp_path / "kernels_gpu.json").read_text())
    assert not kernels_gpu.wrong(found)
    assert (tmp_path / "kernels_gpu.md").read_text() == kernels_gpu.table(found)
    assert len(found["checks"]) == 10 and len(found["decode"]) == 1 and len(found["prefill"]) == 8
    text = kernels_gpu.table(found)
    assert "none of them wrong" in text and "| (256, 256) | 3 |" in text
    found["checks"] |= {"w8a8, 3 tokens": 1.0, "w4a16 nf4, 3 tokens": 0.9}
    assert kernels_gpu.wrong(found) == ["w8a8, 3 tokens: 1"]  # exact, the other within its bound


@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("--gpu", "no GPU here, only cpu"),
        ("--tune", "no accelerator here, only cpu"),
        ("--aot-gpu", "pip install --no-deps jax-cuda13-plugin=="),
    ],
)
def test_each_program_says_what_is_missing(argument, sentence, monkeypatch):
    if argument == "--aot-gpu":
        if kernels_hopper.missing() is None:
            pytest.skip("needs an accelerator's wheels to be absent")
    elif jax.default_backend() != "cpu":
        pytest.skip("needs an accelerator to be absent")
    with pytest.raises(SystemExit, match=sentence):
        run(monkeypatch, argument)


# ---- tuning --------------------------------------------------------------------------------------

CASES = [Case(name, print, (), None) for name in ("first", "second")]


def test_the_best_tile_is_no_op_s_worst():
    """The smallest geometric mean of times over each op's best, not of times."""
    a, b, c = (GpuTile(16, out, 128, 4) for out in (64, 128, 256))
    times = {a: (1.0, 400.0), b: (2.0, 110.0), c: (9.0, 100.0)}  # ratios 1·4, 2·1.1, 9·1

    def seconds(case, tile):
        return times[tile][case.name == "second"]

    found = kernels_tune.best([a, b, c, a], CASES, seconds)
    assert found.tile == b and found.seconds == {"first": 2.0, "second": 110.0}


def test_a_tile_that_does_not_run_loses():
    a, b = Tile(16, 128, 128), Tile(16, 256, 128)

    def seconds(case, tile):
        if tile == a:
            raise RuntimeError("out of VMEM\nand a long story")
        return 1.0

    found = kernels_tune.best([a, b], CASES, seconds)
    assert found.tile == b and found.lost == {"(16, 128, 128)": "out of VMEM"}
    with pytest.raises(ValueError, match="none of 1 tiles runs: out of VMEM"):
        kernels_tune.best([a], CASES, seconds)


@pytest.mark.parametrize("platform, kind", [("gpu", "NVIDIA H200"), ("tpu", "TPU v5 lite")])
def test_what_is_measured_is_what_is_found(platform, kind, tmp_path, monkeypatch):
    """From candidates through the file to the table, by a timer that likes wide tiles."""
    tried = []

    def seconds(case, tile):
        tried.append(case.name.split()[0])
        return 1.0 / tile.out / tile.inner

    found = kernels_tune.measure(platform, seconds, out=64, inner=256)
    ops = {"w4a16", "q4_k", "dequantize", "w8a8", "fp8"}
    assert set(tried) == ops  # quantize_activations has no tile
    path = tmp_path / "tilings.json"
    path.write_text(json.dumps({"NVIDIA other": {"decode": [16, 64, 128, 2, 1]}}))
    kernels_tune.write(found, kind, path)
    assert set(json.loads(path.read_text())) == {"NVIDIA other", kind}
    table = dict(tilings.TILINGS)
    tilings.merge(table, tilings.measured(path))
    monkeypatch.setattr(tilings, "TILINGS", table)
    if platform == "gpu":
        assert tilings.find_gpu(1, kind) == found["decode"].tile
        assert tilings.find_gpu(99, kind, bits=8) == found["prefill 8"].tile
        assert tilings.find_gpu(1, "NVIDIA other").out == 64
        assert tilings.find_gpu(99, "NVIDIA other") == tilings.HOPPER_SAFE["prefill"]  # kept
    else:
        assert tilings.find(1, kind) == found["decode"].tile == Tile(16, 1024, 2048)
    assert kind in kernels_tune.told(found, kind)


def test_the_tuning_program_writes_the_table(monkeypatch, tmp_path, capsys):
    found = {"decode": kernels_tune.Choice(GpuTile(16, 64, 128, 4, 132), {"w4a16": 1e-5}, {})}
    monkeypatch.setattr(kernels_tune, "refusal", lambda: None)
    monkeypatch.setattr(kernels_tune, "measure", lambda platform: found)
    monkeypatch.setattr(kernels_tune.write, "__defaults__", (tmp_path / "tilings.json",))
    run(monkeypatch, "--tune")
    assert tilings.measured(tmp_path / "tilings.json") == {
        jax.devices()[0].device_kind: {"decode": GpuTile(16, 64, 128, 4, 132)}
    }
    assert "w4a16 10.0 µs; 0 tiles did not run" in capsys.readouterr().out


def test_the_timer_of_a_tile_runs():
    """Measured seconds of one candidate and case, on whatever computes here."""
    (case, *_) = kernels_tune.cases("gpu", "decode 8", 64, 256)
    assert case.name == "w8a8 int8_channel"
    tile = GpuTile(16, 64, 128, 2)
    found = kernels_tune.best([tile], [case], partial(kernels_tune.timed, kernels_gpu.TINY))
    assert found.tile == tile and found.seconds[case.name] > 0


def test_nothing_measured_is_no_table(tmp_path):
    assert tilings.measured(tmp_path / "none.json") == {}


# ---- ptxas ---------------------------------------------------------------------------------------


def test_reports_of_ptxas_are_read(tmp_path):
    (tmp_path / "kernel_0.ptxas").write_text(
        "ptxas info : Used 72 registers, used 2 barriers\n"
        "    0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
    )
    (tmp_path / "kernel_0.mlir-passes.log").write_text(
        "%9 = gpu.launch async [%7] blocks(%a, %b, %c) in (%d = %c448, %e = %c2_1, %f = %c1) "
        "threads(%g, %h, %i) in (%j = %c128, %k = %c1, %l = %c1) "
        "dynamic_shared_memory_size %c49192_i32 {\n"
    )
    row = kernels_hopper.read_dumps(tmp_path)
    assert row["registers"] == 72 and row["spilled_bytes"] == 20 and row["shared_bytes"] == 49192
    assert row["blocks"] == 896 and row["threads"] == 128 and row["resident"] == 4
    assert not list(tmp_path.iterdir())  # the next compilation starts clean
    with pytest.raises(ValueError, match="one kernel leaves one report of ptxas, not 0"):
        kernels_hopper.read_dumps(tmp_path)


def test_an_interpreter_without_the_wheels_is_named():
    done = subprocess.run(
        [sys.executable, "-c", "import jax_cuda13_plugin"], capture_output=True, check=False
    )
    assert (kernels_hopper.missing() is None) == (done.returncode == 0)
