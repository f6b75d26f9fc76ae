"""Fusion: from what the encoders say of the modalities that are present to one set of logits.

Modalities are always taken in sorted order, so the order in which a caller names them changes nothing. What a missing
modality's row or a masked token holds, NaN included, is replaced before anything is computed with it.
"""

from typing import NamedTuple

from torch import Tensor, nn


class FusionOutput(NamedTuple):
    logits_BK: Tensor
    weights_BM: Tensor  # weight per modality, each within 0 and 1, sum 1 to rounding; exactly 0 where one is missing
    corrected_BM: Tensor  # the same after division by each modality's token count


class Fusion(nn.Module):
    """`forward(encoded, logits, present_BM) -> FusionOutput`, and what the collapse check asks of it."""

    n_keys: int | None = None  # over how many keys its attention goes when all is present; None without attention
    predicts_numbers: bool = False  # standardised numbers in place of logits of classes
    weight_loss: float = 0.0  # how much training draws its modality weights to the modalities that are right

    def list_query_key_gradients(self) -> list[Tensor]:
        """Gradients of the maps to queries and keys, after a backward pass."""
        return []


def masked_softmax(scores_BM: Tensor, present_BM: Tensor) -> Tensor:
    return scores_BM.masked_fill(~present_BM, float("-inf")).softmax(-1)
