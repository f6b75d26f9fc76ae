"""Torch function modes that make a module trainable as a batch of modules."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class DropoutRecorder(TorchFunctionMode):
    """Notes the shape and dtype of everything that dropout draws, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout and kwargs.get("p", args[1] if len(args) > 1 else 0.5):
            self.draws.append((tuple(args[0].shape), args[0].dtype))
        if func is nn.functional.scaled_dot_product_attention and kwargs.get("dropout_p"):
            q, k = args[:2]
            self.draws.append(((*q.shape[:-1], k.shape[-2]), q.dtype))
        return func(*args, **kwargs)


class BatchedFusionMode(TorchFunctionMode):
    """In which a module computes one of many fusions: with given dropout masks, and linear maps of matrices."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self._masks = iter(masks)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout:
            drops = kwargs.get("p", args[1] if len(args) > 1 else 0.5) and kwargs.get("training", args[2:3] != (False,))
            return args[0] * next(self._masks) if drops else args[0]
        # Neither is there a batched kernel of attention.
        if func is nn.functional.scaled_dot_product_attention:
            q, k, v = args
            drop = next(self._masks) if kwargs.get("dropout_p") else None
            return _compute_attention(q, k, v, kwargs.get("attn_mask"), drop)
        if func is nn.functional.multi_head_attention_forward:
            kwargs["need_weights"] = True
        # Of all windows and tokens at once: batched over fusions, it would else be a product for each window.
        if func is nn.functional.linear and args[0].ndim > 2:
            x = args[0]
            return func(x.flatten(0, -2), *args[1:], **kwargs).unflatten(0, x.shape[:-1])
        return func(*args, **kwargs)


def _compute_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: Tensor | None) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attention = scores.softmax(-1)
    return (attention if drop is None else attention * drop) @ v
