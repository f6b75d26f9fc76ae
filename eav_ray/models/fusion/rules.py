"""What the rules of fusion share: log probabilities or numbers of the modalities, and equal weights."""

import torch
from torch import Tensor

from eav_ray.models.layers import upcast_half_precision


def stack_log_probabilities(logits: dict[str, Tensor], present_BM: Tensor) -> Tensor:
    """(batch, modalities, classes): unimodal log probabilities in sorted order; a missing modality's are uniform."""
    stacked_BMK = torch.stack([upcast_half_precision(logits[m]) for m in sorted(logits)], 1)
    # `where`, not a product: what a missing modality's row holds, NaN included, must not reach result or gradient.
    return torch.where(present_BM[..., None], stacked_BMK, 0).log_softmax(-1)


def sum_weighted_outputs(outputs: dict[str, Tensor], weights_BM: Tensor, present_BM: Tensor) -> Tensor:
    """(batch, targets): the mean of the numbers that the modalities present predict, by weights that sum to 1."""
    stacked_BMK = torch.stack([upcast_half_precision(outputs[m]) for m in sorted(outputs)], 1)
    return (torch.where(present_BM[..., None], stacked_BMK, 0) * weights_BM[..., None]).sum(1)


def share_equally(present_BM: Tensor) -> Tensor:
    """(batch, modalities): equal weights of the modalities that are present, exactly 0 where one is missing."""
    return present_BM / present_BM.sum(1, keepdim=True)
