"""Losses, summed over a batch so that ranks can divide by the global count."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from eav_ray.models.classifier import ClassifierOutput
from eav_ray.models.layers import upcast_half_precision
from eav_ray.training.dataloader import Batch


def compute_losses(logits_BK: Tensor, label_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the loss of each window, (batch,): cross-entropy of classes, or the mean squared error of numbers.

    Args:
        label_B: Classes; or (batch, targets), standardised, so that each target counts alike.
    """
    outputs = upcast_half_precision(logits_BK)
    if label_B.is_floating_point():
        return (outputs - label_B).square().mean(-1)
    return nn.functional.cross_entropy(outputs, label_B, reduction="none", label_smoothing=label_smoothing)


def compute_window_losses(logits_BK: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """(batch,) loss of this rank's windows; rows of weight 0 are 0, whatever their logits are."""

    def compute_weighted(label_B: Tensor, weight_B: Tensor) -> Tensor:
        loss_B = compute_losses(logits_BK, label_B, label_smoothing)
        return torch.where(weight_B > 0, loss_B * weight_B, 0)

    each_B = compute_weighted(batch.label_B, batch.weight_B)
    if batch.mixup_targets is not None:
        other_B, weight_B, share_B = batch.mixup_targets
        each_B = share_B * each_B + (1 - share_B) * compute_weighted(other_B, weight_B)
    return each_B


def restrict_to_modality(batch: Batch, column: int) -> Batch:
    """The batch as one modality sees it: windows that lack it weigh nothing."""
    present_B = batch.present_BM[:, column]
    mixed = batch.mixup_targets
    if mixed is not None:  # only windows with the same modalities are mixed
        mixed = (mixed[0], mixed[1] * present_B, mixed[2])
    return replace(batch, weight_B=batch.weight_B * present_B, mixup_targets=mixed)


def cast_output_to_float32(output: ClassifierOutput) -> ClassifierOutput:
    """What was computed in half precision as float32: losses and tables are made of it."""
    logits = {m: upcast_half_precision(x) for m, x in output.unimodal_logits.items()}
    rest = (upcast_half_precision(x) for x in (output.weights_BM, output.corrected_BM))
    return ClassifierOutput(upcast_half_precision(output.logits_BK), logits, *rest)


def compute_loss_sum(logits_BK: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    return compute_window_losses(logits_BK, batch, label_smoothing).sum()


def compute_modality_weight_loss(output: ClassifierOutput, batch: Batch) -> Tensor:
    """Compute the cross-entropy of the modality weights against which modalities are right, summed over these windows.

    The target is the softmax of the negative losses of the modalities alone, which get no gradient from it; the weights
    are the count-corrected ones. That weights should fall with a modality's own loss is from Zhang et al. 2023 (ICML,
    arXiv 2306.02050).
    """
    names = sorted(output.unimodal_logits)
    # What a window's class weighs says how much the window counts, not how wrong a modality is.
    ones = torch.ones_like(batch.weight_B)
    mixed = None if batch.mixup_targets is None else (batch.mixup_targets[0], ones, batch.mixup_targets[2])
    unweighted = replace(batch, weight_B=ones, mixup_targets=mixed)
    each_BM = [
        compute_window_losses(output.unimodal_logits[m].detach(), restrict_to_modality(unweighted, i), 0.0)
        for i, m in enumerate(names)
    ]
    target_BM = (-torch.stack(each_BM, 1)).masked_fill(~batch.present_BM, float("-inf")).softmax(1)
    log_BM = upcast_half_precision(output.corrected_BM).clamp(min=1e-8).log()
    each_B = -torch.where(batch.present_BM, target_BM * log_BM, 0).sum(1)
    counts_B = batch.weight_B
    if batch.mixup_targets is not None:
        _, weight_B, share_B = batch.mixup_targets
        counts_B = share_B * counts_B + (1 - share_B) * weight_B
    return (each_B * counts_B).sum()


def mixup(batch: Batch, alpha: float, rank: int) -> Batch:
    """Zhang et al. 2018 (arXiv 1710.09412): each window becomes a mean of itself and of another of this rank's batch.

    Windows that lack different modalities, or whose tokens are masked differently, are not mixed with each other.
    """
    rng = np.random.default_rng([batch.seed, rank])
    n, device = len(batch.label_B), batch.label_B.device
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(n)).to(device)
    mixable = (batch.present_BM == batch.present_BM[other]).all(1) & (batch.weight_B > 0) & (batch.weight_B[other] > 0)
    for x in batch.inputs.values():
        if x.dtype == torch.bool:
            mixable = mixable & (x == x[other]).flatten(1).all(1)
    share_B = torch.where(mixable, share, 1.0)
    inputs = {}
    for name, x in batch.inputs.items():
        if x.dtype != torch.bool:
            own = share_B.view(-1, *[1] * (x.ndim - 1))
            mean = own * x + (1 - own) * x[other]
            x = mean.round().to(x.dtype) if x.dtype == torch.uint8 else mean.to(x.dtype)
        inputs[name] = x
    return replace(batch, inputs=inputs, mixup_targets=(batch.label_B[other], batch.weight_B[other], share_B))
