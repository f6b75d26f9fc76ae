"""Does a trained fusion use what it is given? Findings that a reader of its accuracy must know of."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eav_ray.models.classifier import Classifier, FusionClassifier, HeadClassifier
from eav_ray.models.fusion.base import Fusion
from eav_ray.training.dataloader import Batch
from eav_ray.training.losses import compute_losses

DEAD_GRADIENT_SHARE = 1e-6  # of the largest gradient: below, queries and keys learn nothing
MIN_GRADIENT = 1e-8  # a largest gradient below says nothing: the windows are fitted
DOMINANT_WEIGHT, DOMINATED_WINDOWS_SHARE = 0.95, 0.95  # of the weight, and of the windows


@dataclass(frozen=True)
class CollapseFinding:
    check: str
    value: float
    text: str


def find_modality_collapse(
    module: Classifier | HeadClassifier | FusionClassifier, batches: Iterable[Batch], device: torch.device
) -> list[CollapseFinding]:
    """What is degenerate in a trained fusion; empty for one modality alone, and for a fusion that is sound.

    Args:
        module: In whatever mode; it is put in eval mode, and its gradients are overwritten.
        batches: Windows that it is judged on, those that validate it where there are any.
    """
    fusion = module.fusion
    if not isinstance(fusion, Fusion) or isinstance(module, HeadClassifier):
        return []
    module.to(device).eval()
    modalities = module.modalities
    usage, share = _ModalityUsage(len(modalities)), 0.0
    has_gradients = False
    for batch in batches:
        multimodal = (batch.present_BM.sum(1) > 1) & _is_known(batch.label_B)
        if multimodal.any():
            usage.add(module, batch, multimodal, device)
            window_share = (
                _compute_query_key_gradient_share(module, fusion, batch, multimodal, device) if fusion.n_keys else None
            )
            has_gradients, share = has_gradients or window_share is not None, max(share, window_share or 0.0)
    if not usage.n_windows:
        return []
    return [*_find_attention_collapse(fusion, share if has_gradients else None), *usage.list_findings(modalities)]


def _compute_query_key_gradient_share(
    module: Classifier | FusionClassifier, fusion: Fusion, batch: Batch, multimodal: Tensor, device: torch.device
) -> float | None:
    """The largest gradient of queries and keys, as a share of the fusion's largest; None where all are next to zero."""
    module.zero_grad(set_to_none=True)
    inputs = {k: x[multimodal].to(device) for k, x in batch.inputs.items()}
    output = module(inputs, batch.present_BM[multimodal].to(device))
    compute_losses(output.logits_BK.float(), batch.label_B[multimodal].to(device)).mean().backward()
    largest = max((float(p.grad.abs().max()) for p in fusion.parameters() if p.grad is not None), default=0.0)
    largest_query_key = max((float(g.abs().max()) for g in fusion.list_query_key_gradients()), default=0.0)
    module.zero_grad(set_to_none=True)
    return largest_query_key / largest if largest > MIN_GRADIENT else None


def _find_attention_collapse(fusion: Fusion, share: float | None) -> list[CollapseFinding]:
    findings = []
    if fusion.n_keys == 1:
        text = "the attention of this fusion sees 1 key: its weight is always 1, and it weighs no modality"
        findings.append(CollapseFinding("single attention key", 1, text))
    if share is not None and share < DEAD_GRADIENT_SHARE:
        text = f"queries and keys get no gradient (largest {share:.1g} of the fusion's largest): they learn nothing"
        findings.append(CollapseFinding("dead queries and keys", share, text))
    return findings


class _ModalityUsage:
    """Over windows that have more than one modality: whose weight dominates, and what each one's removal costs."""

    def __init__(self, n_modalities: int) -> None:
        self.n_windows = 0
        self.n_dominated = torch.zeros(n_modalities, dtype=torch.float64)
        self.n_removed = torch.zeros(n_modalities, dtype=torch.float64)  # windows in which one could be taken away
        self.loss_increase = torch.zeros(n_modalities, dtype=torch.float64)

    @torch.no_grad()
    def add(
        self, module: Classifier | FusionClassifier, batch: Batch, multimodal: Tensor, device: torch.device
    ) -> None:
        inputs = {k: x[multimodal].to(device) for k, x in batch.inputs.items()}
        present, label = batch.present_BM[multimodal].to(device), batch.label_B[multimodal].to(device)
        encoded, logits = module.encode(inputs, present)
        full_output = module.fuse(encoded, logits, present)
        self.n_windows += len(label)
        self.n_dominated += (full_output.weights_BM > DOMINANT_WEIGHT).sum(0).cpu()
        for column in range(present.shape[1]):
            rows = present[:, column]
            if not rows.any():
                continue
            reduced_present = present.clone()
            reduced_present[rows, column] = False
            reduced_output = module.fuse(encoded, logits, reduced_present)
            difference = compute_losses(reduced_output.logits_BK.float(), label) - compute_losses(
                full_output.logits_BK.float(), label
            )
            self.loss_increase[column] += difference[rows].sum().double().cpu()
            self.n_removed[column] += rows.sum().cpu()

    def list_findings(self, modalities: list[str]) -> list[CollapseFinding]:
        findings = []
        for column, m in enumerate(modalities):
            share = float(self.n_dominated[column] / self.n_windows)
            if share >= DOMINATED_WINDOWS_SHARE:
                text = (
                    f"{m} has more than {DOMINANT_WEIGHT:.0%} of the weight in {share:.1%} of the windows: the others "
                    "hardly count"
                )
                findings.append(CollapseFinding("dominant modality", share, text))
            if self.n_removed[column]:
                loss_increase = float(self.loss_increase[column] / self.n_removed[column])
                if loss_increase <= 0:
                    text = (
                        f"without {m} the loss is no higher ({loss_increase:+.3g} a window): this fusion gains nothing "
                        "by it"
                    )
                    findings.append(CollapseFinding("unused modality", loss_increase, text))
        return findings


def _is_known(label_B: Tensor) -> Tensor:
    """Which windows have a class, or all of the numbers that are predicted."""
    return label_B.isfinite().all(-1) if label_B.is_floating_point() else label_B >= 0
