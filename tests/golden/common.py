"""Inputs and file form shared by the scripts that make golden vectors. numpy only: runs anywhere.

`python make_<peer>.py` writes `<peer>.npz`; `python make_<peer>.py --check` makes the arrays again
and compares them with the file, bit for bit. Every file holds `meta`: JSON with versions and flags.
"""

import io
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SEED = 20240607


def matrix(columns: int, levels, tiny: float = 1e-30) -> np.ndarray:
    """(20, columns) float32: what weights look like, and what they look like on a bad day.

    Args:
        columns: a multiple of 64.
        levels: the values of the format under test. Numbers exactly halfway between them fill row
            12, mirrored in row 13 and 2⁻⁷ times in row 14.
        tiny: the scale of the row of very small numbers.
    """
    rng = np.random.default_rng(SEED)
    normal = rng.standard_normal((20, columns))
    w = normal * 0.02
    w[1] = rng.standard_t(4, columns) * 0.05
    w[2] = rng.laplace(size=columns)
    w[3] = 0.0
    w[4] = 0.3
    w[5] = -0.7
    w[6] = normal[6] * tiny
    w[7] = normal[7] * 1e4
    w[8] = np.abs(normal[8])
    w[9] = -np.abs(normal[9])
    w[10, :64] = 0.0  # a zero block beside others
    w[11] = 0.0
    w[11, 5 * columns // 8] = -3.0  # a single spike
    w = w.astype(np.float32)
    for row, factor in ((12, 1.0), (13, -1.0), (14, 2.0**-7)):
        w[row] = np.resize(np.float32(factor) * midpoints(levels), columns)
        w[row, ::16] = factor * max(levels, key=abs)  # once in every block
    w[15, ::3] = 0.0
    w[16] = np.round(w[16] * 64) / 64  # few distinct values
    w[17] *= np.float32(2.0) ** (np.arange(columns) // 32 % 24 - 12)  # blocks of every size
    return w


def midpoints(levels) -> np.ndarray:
    """Halfway between neighbouring levels, in float32."""
    v = np.unique(np.asarray(levels, np.float32))
    return ((v[1:] + v[:-1]) / np.float32(2)).astype(np.float32)


def ties(levels, block: int, rows: int = 2) -> np.ndarray:
    """(rows, columns) float32: every number halfway between two levels, the largest level once in
    every block, and each row 2⁻⁷ times the one before.
    """
    middle, top = midpoints(levels), np.float32(max(levels, key=abs))
    columns = block * -(-len(middle) // (block - 1))
    row = np.resize(middle, (columns // block, block))
    row[:, 1:] = np.resize(middle, (columns // block, block - 1))
    row[:, 0] = top
    return np.stack([row.reshape(-1) * np.float32(2.0 ** (-7 * i)) for i in range(rows)])


def extremes(tops, block: int) -> np.ndarray:
    """(rows, 4 · block) float32: blocks whose largest magnitude is exactly, just above and just
    below a number at which a scale changes; the largest floats; subnormal ones; single numbers.

    Args:
        tops: such numbers.
        block: weights that share a scale.
    """
    rng = np.random.default_rng(SEED + 2)
    top = np.array(tops, np.float32)
    near = np.stack([top, np.nextafter(top, np.float32(np.inf)), np.nextafter(top, np.float32(0))])
    near = near.T.reshape(-1)
    near = np.resize(near, (-(-len(near) // 4) * 4))
    w = rng.uniform(-1, 1, (len(near), block)).astype(np.float32) * near[:, None]
    w[:, block // 2] = near * np.where(np.arange(len(near)) % 2, -1, 1)
    w = w.reshape(-1, 4 * block)
    large = rng.uniform(-1, 1, (1, 4 * block)).astype(np.float32) * np.finfo(np.float32).max
    large[0, ::block] = np.finfo(np.float32).max
    small = rng.standard_normal((1, 4 * block)).astype(np.float32) * np.float32(1e-39)
    tiny = rng.standard_normal((1, 4 * block)).astype(np.float32) * np.float32(1e-36)
    alone = np.zeros((1, 4 * block), np.float32)
    alone[0, 3::block] = [1e-30, -1e4, 448.0, -(2.0**-126)]
    return np.concatenate([w, large, small, tiny, alone])


def save(peer: str, arrays: dict[str, np.ndarray], packages: list[str], notes: dict) -> None:
    """Writes `<peer>.npz`, or with --check compares with it.

    Raises:
        SystemExit: with --check, if an array differs from the file.
    """
    meta = {
        "script": Path(sys.argv[0]).name,
        "seed": SEED,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {p: version(p) for p in [*packages, "numpy"]},
        "arrays": {k: [str(a.dtype), list(a.shape)] for k, a in arrays.items()},
        **notes,
    }
    path = HERE / f"{peer}.npz"
    if "--check" in sys.argv:
        with np.load(path) as old:
            wrong = [k for k in arrays if old[k].tobytes() != arrays[k].tobytes()]
            wrong += sorted(set(old.files) ^ {*arrays, "meta"})
        if wrong:
            raise SystemExit(f"{path.name} differs in {wrong}")
        print(f"{path.name}: {len(arrays)} arrays are identical")
        return
    buffer = io.BytesIO()
    np.savez_compressed(buffer, meta=np.array(json.dumps(meta, sort_keys=True)), **arrays)
    partial = path.with_suffix(".partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size} bytes")
