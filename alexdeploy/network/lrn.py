"""Local response normalization as a fast autograd function, and as ONNX's native LRN node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from alexdeploy.core.spec import LRN


class LocalResponseNorm(nn.Module):
    """y = x / (k + alpha / size * sum(x^2))^beta over `size` neighbouring channels of x [N, C, H, W].

    With `towers` = 2 the window stays within each half of the channels. Same result as `nn.LocalResponseNorm`, which
    pads, averages in 3-D and has no bfloat16 kernel on the CPU. Sums are in float32 for any input type.
    """

    def __init__(self, lrn: LRN, towers: int = 1) -> None:
        super().__init__()
        self.lrn = lrn
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        if self.towers > 1:
            x = x.reshape(-1, channels // self.towers, height, width)
        if torch.onnx.is_in_onnx_export():
            x = _onnx_lrn(x, self.lrn)
        else:
            lrn = self.lrn
            x = _LRNFunction.apply(x, lrn.size, lrn.alpha, lrn.beta, lrn.k)  # type: ignore[no-untyped-call]
        return x.reshape(-1, channels, height, width) if self.towers > 1 else x

    def extra_repr(self) -> str:
        lrn = self.lrn
        return f"size={lrn.size}, alpha={lrn.alpha}, beta={lrn.beta}, k={lrn.k}, towers={self.towers}"


def _onnx_lrn(x: Tensor, lrn: LRN) -> Tensor:
    # Both of torch's exporters decompose nn.LocalResponseNorm into Mul, Pad, AveragePool, Pow and Div.
    attributes: dict[str, Any] = {"size": lrn.size, "alpha": lrn.alpha, "beta": lrn.beta, "bias": lrn.k}
    return torch.onnx.ops.symbolic("LRN", (x,), attributes, dtype=x.dtype, shape=x.shape, version=17)


class _LRNFunction(torch.autograd.Function):
    """d = k + alpha/n W(x^2), y = x d^-b;  dx = g d^-b - 2 b alpha/n x W(g x d^(-b-1)), W the window sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        denominator = _window_sum(wide.square(), size).mul_(alpha / size).add_(k)
        scale = _negative_power(denominator, beta)
        ctx.save_for_backward(x, denominator, scale)
        ctx.constants = (size, alpha, beta)
        return (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, denominator, scale = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        wide = x.to(denominator.dtype)
        scaled = gradients[0].to(denominator.dtype) * scale
        spread = _window_sum((scaled * wide).div_(denominator), size)
        result = scaled.sub_(spread.mul_(wide).mul_(2.0 * beta * alpha / size))
        return result.to(x.dtype), None, None, None, None


def _negative_power(x: Tensor, beta: float) -> Tensor:
    """x^-beta. 0.75, the value in every AlexNet, takes two square roots: several times as fast as pow."""
    if beta == 0.75:
        root = x.rsqrt()
        return root.mul_(root.sqrt())
    return x.pow(-beta)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Sum over `size` (odd) neighbouring channels of x [N, C, H, W]; outside counts as zero."""
    total = x.clone()
    for shift in range(1, min(size // 2, x.shape[1] - 1) + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total
