"""Does a trained fusion use what it is given? Findings that a reader of its accuracy must know of."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eav_ray.models.build import Classifier, FusionAlone
from eav_ray.models.fusion import Fusion
from eav_ray.training.loop import Batch

DEAD = 1e-6  # of the largest gradient: below, queries and keys learn nothing
MASS, NEARLY_ALL = 0.95, 0.95  # of the weight, and of the windows


@dataclass(frozen=True)
class Finding:
    check: str
    figure: float
    text: str


def find_collapse(module: Classifier | FusionAlone, batches: Iterable[Batch], device: torch.device) -> list[Finding]:
    """What is degenerate in a trained fusion; empty for one modality alone, and for a fusion that is sound.

    Args:
        module: In whatever mode; it is put in eval mode, and its gradients are overwritten.
        batches: Windows that it is judged on, those that validate it where there are any.
    """
    fusion = module.fusion
    if not isinstance(fusion, Fusion):
        return []
    module.to(device).eval()
    names = module.names
    sums = _Sums(len(names))
    first = None
    for batch in batches:
        first = first or batch
        sums.add(module, batch, device)
    if first is None or not sums.windows:
        return []
    return [*_attention(module, fusion, first, device), *sums.findings(names)]


def _attention(module: Classifier | FusionAlone, fusion: Fusion, batch: Batch, device: torch.device) -> list[Finding]:
    found = []
    if fusion.n_keys == 1:
        text = "the attention of this fusion sees 1 key: its weight is always 1, and it weighs no modality"
        found.append(Finding("one key", 1, text))
    if fusion.n_keys:
        module.zero_grad(set_to_none=True)
        output = module({k: x.to(device) for k, x in batch.inputs.items()}, batch.present_BM.to(device))
        nn.functional.cross_entropy(output.logits_BK.float(), batch.label_B.to(device)).backward()
        largest = max((float(p.grad.abs().max()) for p in fusion.parameters() if p.grad is not None), default=0.0)
        learning = max((float(g.abs().max()) for g in fusion.query_key_gradients()), default=0.0)
        share = learning / largest if largest else 0.0
        if share < DEAD:
            text = f"queries and keys get no gradient (largest {share:.1g} of the fusion's largest): they learn nothing"
            found.append(Finding("dead queries and keys", share, text))
        module.zero_grad(set_to_none=True)
    return found


class _Sums:
    """Over windows that have more than one modality: whose weight dominates, and what each one's removal costs."""

    def __init__(self, n_modalities: int) -> None:
        self.windows = 0
        self.dominated = torch.zeros(n_modalities, dtype=torch.float64)
        self.removed = torch.zeros(n_modalities, dtype=torch.float64)  # windows in which one could be taken away
        self.cost = torch.zeros(n_modalities, dtype=torch.float64)

    @torch.no_grad()
    def add(self, module: Classifier | FusionAlone, batch: Batch, device: torch.device) -> None:
        several = (batch.present_BM.sum(1) > 1) & (batch.label_B >= 0)
        if not several.any():
            return
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
