"""Does a trained fusion use what it is given? Findings that a reader of its accuracy must know of."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eav_ray.models.build import Classifier, FusionAlone, HeadAlone
from eav_ray.models.fusion import Fusion
from eav_ray.training.loop import Batch

DEAD = 1e-6  # of the largest gradient: below, queries and keys learn nothing
TELLING = 1e-8  # a largest gradient below says nothing: the windows are fitted
MASS, NEARLY_ALL = 0.95, 0.95  # of the weight, and of the windows


@dataclass(frozen=True)
class Finding:
    check: str
    figure: float
    text: str


def find_collapse(
    module: Classifier | HeadAlone | FusionAlone, batches: Iterable[Batch], device: torch.device
) -> list[Finding]:
    """What is degenerate in a trained fusion; empty for one modality alone, and for a fusion that is sound.

    Args:
        module: In whatever mode; it is put in eval mode, and its gradients are overwritten.
        batches: Windows that it is judged on, those that validate it where there are any.
    """
    fusion = module.fusion
    if not isinstance(fusion, Fusion) or isinstance(module, HeadAlone):
        return []
    module.to(device).eval()
    names = module.names
    sums, share = _Sums(len(names)), 0.0
    has_gradients = False
    for batch in batches:
        several = (batch.present_BM.sum(1) > 1) & (batch.label_B >= 0)
        if several.any():
            sums.add(module, batch, several, device)
            found = _share_of_queries(module, fusion, batch, several, device) if fusion.n_keys else None
            has_gradients, share = has_gradients or found is not None, max(share, found or 0.0)
    if not sums.windows:
        return []
    return [*_attention(fusion, share if has_gradients else None), *sums.findings(names)]


def _share_of_queries(
    module: Classifier | FusionAlone, fusion: Fusion, batch: Batch, several: Tensor, device: torch.device
) -> float | None:
    """The largest gradient of queries and keys, as a share of the fusion's largest; None where all are next to zero."""
    module.zero_grad(set_to_none=True)
    inputs = {k: x[several].to(device) for k, x in batch.inputs.items()}
    output = module(inputs, batch.present_BM[several].to(device))
    _loss(output.logits_BK, batch.label_B[several].to(device)).mean().backward()
    largest = max((float(p.grad.abs().max()) for p in fusion.parameters() if p.grad is not None), default=0.0)
    learning = max((float(g.abs().max()) for g in fusion.query_key_gradients()), default=0.0)
    module.zero_grad(set_to_none=True)
    return learning / largest if largest > TELLING else None


def _attention(fusion: Fusion, share: float | None) -> list[Finding]:
    found = []
    if fusion.n_keys == 1:
        text = "the attention of this fusion sees 1 key: its weight is always 1, and it weighs no modality"
        found.append(Finding("one key", 1, text))
    if share is not None and share < DEAD:
        text = f"queries and keys get no gradient (largest {share:.1g} of the fusion's largest): they learn nothing"
        found.append(Finding("dead queries and keys", share, text))
    return found


class _Sums:
    """Over windows that have more than one modality: whose weight dominates, and what each one's removal costs."""

    def __init__(self, n_modalities: int) -> None:
        self.windows = 0
        self.dominated = torch.zeros(n_modalities, dtype=torch.float64)
        self.removed = torch.zeros(n_modalities, dtype=torch.float64)  # windows in which one could be taken away
        self.cost = torch.zeros(n_modalities, dtype=torch.float64)

    @torch.no_grad()
    def add(self, module: Classifier | FusionAlone, batch: Batch, several: Tensor, device: torch.device) -> None:
        inputs = {k: x[several].to(device) for k, x in batch.inputs.items()}
        present, label = batch.present_BM[several].to(device), batch.label_B[several].to(device)
        encoded, logits = module.encode(inputs, present)
        whole = module.fuse(encoded, logits, present)
        self.windows += len(label)
        self.dominated += (whole.weights_BM > MASS).sum(0).cpu()
        for column in range(present.shape[1]):
            rows = present[:, column]
            if not rows.any():
                continue
            less = present.clone()
            less[rows, column] = False
            without = module.fuse(encoded, logits, less)
            difference = _loss(without.logits_BK, label) - _loss(whole.logits_BK, label)
            self.cost[column] += difference[rows].sum().double().cpu()
            self.removed[column] += rows.sum().cpu()

    def findings(self, names: list[str]) -> list[Finding]:
        found = []
        for column, m in enumerate(names):
            share = float(self.dominated[column] / self.windows)
            if share >= NEARLY_ALL:
                text = (
                    f"{m} has more than {MASS:.0%} of the weight in {share:.1%} of the windows: the others hardly count"
                )
                found.append(Finding("one modality has all the weight", share, text))
            if self.removed[column]:
                cost = float(self.cost[column] / self.removed[column])
                if cost <= 0:
                    text = f"without {m} the loss is no higher ({cost:+.3g} a window): this fusion gains nothing by it"
                    found.append(Finding("a modality that is not used", cost, text))
        return found


def _loss(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits_BK.float(), label_B, reduction="none")
