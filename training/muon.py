"""Muon (Jordan et al. 2024) on the linear layers, AdamW (arXiv 1711.05101) on embedding and gains.

Muon steps along the nearest orthogonal matrix of the momentum, found by five Newton–Schulz steps
X ← aX + (bA + cA²)X, A = XXᵀ; scaled to root mean square 0.2 as in arXiv 2502.16982, eq. 4.
Matrices of one shape are orthogonalised together, and each device does its share of them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from qlab.models.surgery import linears
from qlab.models.transformer import Transformer
from training.fast import product, transposed

COEFFICIENTS = (3.4445, -4.775, 2.0315)
MOMENTUM, RMS, DECAY = 0.95, 0.2, 0.1
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
CLIP = 1.0


def init(model: Transformer) -> dict[str, Any]:
    """Returns zero moments: `momentum` for every weight, `square` for those that AdamW moves."""
    matrices, rest = split(model)
    return {
        "momentum": jax.tree.map(jnp.zeros_like, matrices),
        "mean": jax.tree.map(jnp.zeros_like, rest),
        "square": jax.tree.map(jnp.zeros_like, rest),
        "step": jnp.int32(0),
    }


def split(model: Transformer) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns ({path: matrix of a linear layer}, {path: every other array})."""
    matrices = {f"{path}.weight": layer.weight for path, layer in linears(model).items()}
    leaves = jax.tree_util.tree_leaves_with_path(model)
    named = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
    return matrices, {path: leaf for path, leaf in named.items() if path not in matrices}


def join(model: Transformer, arrays: dict[str, jax.Array]) -> Transformer:
    """Returns the model with its arrays replaced by path."""
    return jax.tree_util.tree_map_with_path(
        lambda p, _: arrays[jax.tree_util.keystr(p, simple=True, separator=".")], model
    )


def orthogonalise(x: jax.Array) -> jax.Array:
    """Newton–Schulz on a stack x (n, rows, columns), rows ≤ columns; products in bfloat16."""
    a, b, c = COEFFICIENTS

    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    for _ in range(5):
        small = x.astype(jnp.bfloat16)
        gram = product(small, transposed(small))
        gram_small = gram.astype(jnp.bfloat16)
        mixed = b * gram + c * product(gram_small, gram_small)
        x = a * x + product(mixed.astype(jnp.bfloat16), small)
    return x


def shared(stack: jax.Array, axis: str | None) -> jax.Array:
    """Orthogonalises a stack, each device of `axis` its part of it."""
    devices = jax.lax.axis_size(axis) if axis else 1
    if devices == 1:
        return orthogonalise(stack)
    count = len(stack)
    stack = jnp.pad(stack, ((0, -count % devices), (0, 0), (0, 0)))
    each = len(stack) // devices
    mine = jax.lax.dynamic_slice_in_dim(stack, jax.lax.axis_index(axis) * each, each)
    return jax.lax.all_gather(orthogonalise(mine), axis, tiled=True)[:count]


def directions(matrices: dict[str, jax.Array], axis: str | None) -> dict[str, jax.Array]:
    """Returns the orthogonal direction of every matrix, root mean square RMS."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, m in matrices.items():
        groups.setdefault(tuple(sorted(m.shape)), []).append(path)
    result = {}
    for (_, wide), paths in groups.items():
        tall = [matrices[p].shape[0] > matrices[p].shape[1] for p in paths]
        stack = jnp.stack(
            [matrices[p].T if t else matrices[p] for p, t in zip(paths, tall, strict=True)]
        )
        stack = shared(stack, axis) * (RMS * wide**0.5)
        for path, t, direction in zip(paths, tall, stack, strict=True):
            result[path] = direction.T if t else direction
    return result


def update(
    model: Transformer,
    gradient: Transformer,
    state: dict[str, Any],
    muon_rate: jax.Array,
    adam_rate: jax.Array,
    axis: str | None = None,
) -> tuple[Transformer, dict[str, Any]]:
    """Makes one step.

    Args:
        model: weights.
        gradient: of the same structure; scaled down if its norm exceeds CLIP.
        state: from `init` or the step before.
        muon_rate: learning rate of the linear layers.
        adam_rate: learning rate of embedding and gains.
        axis: name of the mapped axis whose devices share the work, if any.

    Returns:
        The new weights and the new state.
    """
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / (norm + 1e-9)), gradient)
    (matrices, rest), (dmatrices, drest) = split(model), split(gradient)
    momentum = {p: MOMENTUM * state["momentum"][p] + g for p, g in dmatrices.items()}
    nesterov = {p: MOMENTUM * momentum[p] + g for p, g in dmatrices.items()}
    new = {
        p: matrices[p] * (1 - muon_rate * DECAY) - muon_rate * d
        for p, d in directions(nesterov, axis).items()
    }
    step = state["step"] + 1
    mean = {p: BETA1 * state["mean"][p] + (1 - BETA1) * g for p, g in drest.items()}
    square = {p: BETA2 * state["square"][p] + (1 - BETA2) * g * g for p, g in drest.items()}
    t = step.astype(jnp.float32)
    for p, w in rest.items():
        m, s = mean[p] / (1 - BETA1**t), square[p] / (1 - BETA2**t)
        new[p] = w - adam_rate * m / (jnp.sqrt(s) + EPS)
    return join(model, new), {"momentum": momentum, "mean": mean, "square": square, "step": step}
