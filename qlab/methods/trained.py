"""Weights and inputs in training: pytrees that hold what is learned and multiply as the converted
layer will.

    y = x̂ ŵᵀ forward, by `act_matmul` on the same codes;  backward dx̂ = g ŵ,  dŵ = gᵀ x̂, and from
    there the estimators of `qat` go on to x and w

Not here: which layers are trained (`models.prepare`), and how (`models.qat`).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from qlab.activations import Act, act_matmul, encode_inputs, quantized_inputs, split_outliers
from qlab.methods import qat
from qlab.methods.qat import Learned
from qlab.qtensor import QTensor, Spec, quantize
from qlab.stats import PRECISION

PRODUCT = partial(jnp.matmul, precision=PRECISION)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["w", "learned"],
    meta_fields=["spec", "method"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Trained:
    """A weight that is trained while it is quantized.

    Attributes:
        w: (out, in) float32, the weights that the optimizer moves.
        learned: steps and offsets of `lsq`, float32, one a block; empty elsewhere.
        spec: what it is quantized to.
        method: a key of `qat.ESTIMATORS`.
    """

    w: jax.Array
    learned: Learned
    spec: Spec
    method: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.w.shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.w.dtype

    def __repr__(self) -> str:
        return f"Trained{self.shape}({self.spec.format}, {self.method})"

    def quantized(self) -> QTensor:
        """What it becomes: the codes of now. No gradient."""
        how = qat.stored(self.learned, self.spec) if self.learned else self.spec
        return jax.tree.map(jax.lax.stop_gradient, quantize(self.w, how))

    def value(self, q: QTensor | None = None) -> jax.Array:
        """ŵ (out, in) float32 with the method's gradient.

        Args:
            q: `self.quantized()`, where it is known already.
        """
        q = self.quantized() if q is None else q
        if self.method == "lsq":
            return qat.lsq(self.w, self.learned, q)
        return (qat.clipped if self.method == "clipped" else qat.ste)(self.w, q)

    def product(self, x: jax.Array, act: Act | LearnedAct | None) -> jax.Array:
        """x ŵᵀ, (..., time, in) -> (..., time, out) float32; bit for bit what the QTensor gives."""
        if act is None:
            return PRODUCT(x, self.value().T)
        q = self.quantized()
        known = act.act() if isinstance(act, LearnedAct) else act
        x_hat = jax.vmap(lambda one: _inputs(one, act, self.method))(
            x.reshape(-1, *x.shape[-2:])
        ).reshape(x.shape)
        exact = act_matmul(jax.lax.stop_gradient(x), q, jax.lax.stop_gradient(known))
        return _as_if(x_hat, self.value(q), exact)


@partial(jax.tree_util.register_dataclass, data_fields=["alpha"], meta_fields=["spec"])
@dataclasses.dataclass(frozen=True)
class LearnedClip:
    """Inputs with a learned clip α: what `Act` becomes while `pact` trains it.

    Attributes:
        alpha: () float32.
        spec: of the inputs, block "tensor".
    """

    alpha: jax.Array
    spec: Spec

    def act(self) -> Act:
        """The Act with static ranges that it becomes."""
        return Act(self.spec, qat.pact_ranges(self.alpha, self.spec), static=True)

    def value(self, x: jax.Array) -> jax.Array:
        """x̂ (time, in) of one sequence with the gradients of x and α."""
        return qat.pact(x, self.alpha, encode_inputs(x, jax.lax.stop_gradient(self.act())))


@partial(jax.tree_util.register_dataclass, data_fields=["step"], meta_fields=["spec"])
@dataclasses.dataclass(frozen=True)
class LearnedStep:
    """Inputs with a learned step: what a static `Act` becomes while `lsq` trains it.

    Attributes:
        step: () float32.
        spec: of the inputs, block "tensor".
    """

    step: jax.Array
    spec: Spec

    def act(self) -> Act:
        """The Act with static ranges that it becomes."""
        return Act(self.spec, qat.stored({"step": self.step.reshape(1, 1)}, self.spec), static=True)

    def value(self, x: jax.Array) -> jax.Array:
        """x̂ (time, in) of one sequence with the gradients of x and the step; N of the step's is all
        of the sequence's numbers (Esser §2.2: the features of one sample).
        """
        q = encode_inputs(x, jax.lax.stop_gradient(self.act()))
        return qat.lsq(x, {"step": self.step.reshape(1, 1)}, q)


LearnedAct = LearnedClip | LearnedStep


def _inputs(x: jax.Array, act: Act | LearnedAct, method: str) -> jax.Array:
    """x̂ (time, in) of one sequence with the gradient of the method."""
    if isinstance(act, LearnedAct):
        return act.value(x)
    inside, outlying = split_outliers(x, act)
    if method == "clipped":
        return qat.clipped(inside, jax.lax.stop_gradient(encode_inputs(inside, act))) + outlying
    return _straight(x, jax.lax.stop_gradient(quantized_inputs(x, act)))


@jax.custom_vjp
def _straight(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    return x_hat


_straight.defvjp(lambda x, x_hat: (x_hat, None), lambda _, g: (g, None))


@jax.custom_vjp
def _as_if(x: jax.Array, w: jax.Array, exact: jax.Array) -> jax.Array:
    """`exact` forward; backward as if it were x wᵀ."""
    return exact


def _as_if_backward(saved: tuple, g: jax.Array):
    x, w = saved
    dw = PRODUCT(g.reshape(-1, g.shape[-1]).T, x.reshape(-1, x.shape[-1]))
    return PRODUCT(g, w), dw, None


_as_if.defvjp(lambda x, w, exact: (exact, (x, w)), _as_if_backward)
