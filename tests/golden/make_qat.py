"""Gradients through rounding as torch has them, and as two papers do.

Needs torch (CPU build). fake_quantize_per_channel_affine and the learnable per-tensor one are
torch's own; LSQ (arXiv 1902.08153, eqs. 1, 3, 5) and PACT (arXiv 1805.06085, eqs. 1, 3) are written
out below, each as an autograd function of its equations.
"""

import math

import numpy as np
import torch
from common import SEED, save

LOW, HIGH = -8, 7


class LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, s):
        ctx.save_for_backward(v, s)
        return torch.clamp(v / s, LOW, HIGH).round() * s

    @staticmethod
    def backward(ctx, g):
        v, s = ctx.saved_tensors
        u = v / s
        inside = (u > LOW) & (u < HIGH)
        slope = torch.where(inside, u.round() - u, u.clamp(LOW, HIGH).round())
        steepness = 1 / math.sqrt(v.shape[1] * HIGH)  # a row shares its step
        return g * inside, (g * slope).sum(1, keepdim=True) * steepness


class PACT(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.save_for_backward(x, alpha)
        return (x.clamp(min=0).minimum(alpha) * (255 / alpha)).round() * (alpha / 255)

    @staticmethod
    def backward(ctx, g):
        x, alpha = ctx.saved_tensors
        return g * ((x > 0) & (x < alpha)), (g * (x >= alpha)).sum()


def main() -> None:
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((6, 48)).astype(np.float32)
    scale = rng.uniform(0.1, 0.4, (6, 1)).astype(np.float32)
    g = rng.standard_normal(w.shape).astype(np.float32)
    arrays = {"w": w, "scale": scale, "g": g}

    x = torch.tensor(w, requires_grad=True)
    zeros = torch.zeros(6, dtype=torch.int32)
    y = torch.fake_quantize_per_channel_affine(x, torch.tensor(scale[:, 0]), zeros, 0, LOW, HIGH)
    y.backward(torch.tensor(g))
    arrays |= {"channel.y": y.detach().numpy(), "channel.dw": x.grad.numpy()}

    x, s = torch.tensor(w, requires_grad=True), torch.tensor([0.2], requires_grad=True)
    zero = torch.zeros(1, requires_grad=True)
    y = torch._fake_quantize_learnable_per_tensor_affine(x, s, zero, LOW, HIGH, 1.0)
    y.backward(torch.tensor(g))
    arrays |= {"tensor.y": y.detach().numpy(), "tensor.dw": x.grad.numpy()}
    arrays |= {"tensor.ds": s.grad.numpy()}

    x, s = torch.tensor(w, requires_grad=True), torch.tensor(scale, requires_grad=True)
    y = LSQ.apply(x, s)
    y.backward(torch.tensor(g))
    arrays |= {"lsq.y": y.detach().numpy(), "lsq.dw": x.grad.numpy(), "lsq.ds": s.grad.numpy()}

    x, alpha = torch.tensor(w, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    y = PACT.apply(x, alpha)
    y.backward(torch.tensor(g))
    arrays |= {"pact.y": y.detach().numpy(), "pact.dx": x.grad.numpy()}
    arrays |= {"pact.dalpha": alpha.grad.numpy()}
    save("qat", arrays, ["torch"], {"low": LOW, "high": HIGH})


if __name__ == "__main__":
    main()
