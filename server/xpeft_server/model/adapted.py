"""Modules that put adapters behind each block's feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from xpeft_kernels import Norm

from .loading.families import Family


class Adapters(Protocol):
    """The adapters behind the blocks' feed-forwards: slots when serving, masks when tuning."""

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        """``[T, H]`` in and out; applies ``residual`` and ``norm``, if given, after the adapter."""
        ...


class AdapterContext:
    """The adapters that the running forward applies; None is the bare PLM. For one thread and one forward at a time."""

    def __init__(self) -> None:
        self.adapters: Adapters | None = None

    @contextmanager
    def applying(self, adapters: Adapters | None) -> Iterator[None]:
        before, self.adapters = self.adapters, adapters
        try:
            yield
        finally:
            self.adapters = before


class AdaptedFeedForward(nn.Module):
    """A pre-norm block's feed-forward: the residual is added outside, by the block."""

    def __init__(self, inner: nn.Module, block: int, context: AdapterContext) -> None:
        super().__init__()
        self.inner = inner
        self.block = block
        self.context = context

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.inner(hidden_states)
        if self.context.adapters is None:
            return out
        flat = out.view(-1, out.shape[-1])
        return self.context.adapters(self.block, flat, None, None).view_as(out)


class AdaptedOutput(nn.Module):
    """A post-norm block's end (BERT's Output): dense, adapter, residual add, LayerNorm. Frozen, so no dropout."""

    def __init__(self, output: nn.Module, block: int, context: AdapterContext) -> None:
        super().__init__()
        self.dense = output.get_submodule("dense")
        norm = output.get_submodule("LayerNorm")
        if not isinstance(norm, nn.LayerNorm):
            raise TypeError(f"block {block} ends with {type(norm).__name__}, expected LayerNorm")
        self.LayerNorm = norm
        self.block = block
        self.context = context

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        out: Tensor = self.dense(hidden_states)
        if self.context.adapters is None:
            normed: Tensor = self.LayerNorm(out + input_tensor)
            return normed
        width = out.shape[-1]
        norm = Norm(self.LayerNorm.weight, self.LayerNorm.bias, self.LayerNorm.eps)
        flat = out.view(-1, width)
        return self.context.adapters(self.block, flat, input_tensor.reshape(-1, width), norm).view_as(out)


def install_adapters(model: nn.Module, family: Family) -> AdapterContext:
    """Install the modules, once, after loading. Returns: the context that chooses their adapters."""
    context = AdapterContext()
    blocks = model.get_submodule(family.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise TypeError(f"{family.blocks} is a {type(blocks).__name__}, expected a list of blocks")
    for index, block in enumerate(blocks):
        inner = block.get_submodule(family.feed_forward)
        adapted: nn.Module
        if family.post_norm:
            adapted = AdaptedOutput(inner, index, context)
        else:
            adapted = AdaptedFeedForward(inner, index, context)
        block.set_submodule(family.feed_forward, adapted)
    return context
