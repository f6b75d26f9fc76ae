"""Train several fusions of one structure as one batched computation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # pyright: ignore[reportPrivateImportUsage]

from eav_ray.config import OptimConfig
from eav_ray.models.classifier import ClassifierOutput, FusionClassifier
from eav_ray.models.fusion.base import Fusion
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import seed_generators
from eav_ray.training.losses import cast_output_to_float32, compute_loss_sum, compute_modality_weight_loss
from eav_ray.training.torch_workarounds import adamw
from eav_ray.tuning.function_modes import BatchedFusionMode, DropoutRecorder

# Rows of every shared attention of a stack with as many heads or fewer, so that heads of all counts are one structure,
# and what a fusion becomes does not depend on the counts of the others.
PADDED_ATTENTION_HEADS = 16


# Of torch.optim.AdamW, which trains a fusion alone.
ADAMW_OPTIONS: dict[str, Any] = {
    "fused": True,
    "amsgrad": False,
    "maximize": False,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
}


@dataclass(frozen=True)
class DropoutDraw:
    """What dropout draws once."""

    shape: tuple[int, ...]  # batch first
    dtype: torch.dtype
    padded_shape: tuple[int, ...]  # of a window, where heads are filled up


class FusionStack:
    """The weights of several fusions of one structure and their optimizer state, one row a fusion.

    Args:
        modules: With fresh weights, on `device`.
        optims: `weight_decay` and `clip` of each count.
    """

    def __init__(self, modules: list[FusionClassifier], optims: list[OptimConfig], device: torch.device) -> None:
        fusions = [cast(Fusion, module.fusion) for module in modules]
        self._dropout = [max((m.p for m in f.modules() if isinstance(m, nn.Dropout)), default=0.0) for f in fusions]
        # Where one drops, the structure must ask for masks; a fusion without dropout gets ones.
        self.module = modules[int(np.argmax(self._dropout))]
        self.names = self.module.modalities
        # Matrices, which decay, lie before vectors, which do not.
        parameters = sorted(self.module.named_parameters(), key=lambda named: named[1].ndim < 2)
        self._shapes = {name: p.shape for name, p in parameters}
        self._decayed = sum(p.numel() for _, p in parameters if p.ndim > 1)
        rows = [[dict(module.named_parameters())[name].detach() for name in self._shapes] for module in modules]
        flat = torch.stack([torch.cat([p.flatten() for p in row]) for row in rows]).to(device)
        self._weights = flat.requires_grad_()
        self._adam_state = torch.zeros_like(flat), torch.zeros_like(flat)
        self._step_count = torch.zeros((), dtype=torch.float32, device=device)
        self._decay = [optim.weight_decay for optim in optims]
        self._clip = torch.tensor([optim.clip for optim in optims], dtype=flat.dtype, device=device)
        self._smoothing, self._batch = optims[0].label_smoothing, optims[0].batch
        self._weight_loss = torch.tensor([f.weight_loss for f in fusions], dtype=flat.dtype, device=device)
        self._draws: dict[tuple[int, int], tuple[list[DropoutDraw], bool]] = {}
        # Of shared attention: which channels belong to which head of each row.
        parts = [f.heads_HD.to(device) for f in fusions if isinstance(f, SharedAttentionFusion)]
        self._head_counts = [len(p) for p in parts] or [0] * len(modules)
        self._exact_heads = {len(p): p for p in parts}
        n_rows = max(PADDED_ATTENTION_HEADS, *self._head_counts)
        self._padded_heads = torch.stack([pad_rows(p, n_rows, 0) for p in parts]) if parts else None

    def __len__(self) -> int:
        return len(self._decay)

    def copy_weights(self, row: int) -> dict[str, Tensor]:
        """One fusion's parameters by name."""
        return {name: p[row].detach().clone() for name, p in self._split_parameters().items()}

    def select_members(self, rows: list[int]) -> None:
        """Go on with these fusions only."""
        self._weights = self._weights.detach()[rows].requires_grad_()
        self._adam_state = self._adam_state[0][rows], self._adam_state[1][rows]
        self._decay, self._dropout = [self._decay[r] for r in rows], [self._dropout[r] for r in rows]
        self._clip, self._weight_loss = self._clip[rows], self._weight_loss[rows]
        self._head_counts = [self._head_counts[r] for r in rows]
        self._padded_heads = None if self._padded_heads is None else self._padded_heads[rows]

    def _split_parameters(self) -> dict[str, Tensor]:
        parts = self._weights.split([shape.numel() for shape in self._shapes.values()], 1)
        return {name: p.unflatten(1, shape) for (name, shape), p in zip(self._shapes.items(), parts, strict=True)}

    def _list_buffers(self) -> dict[str, Tensor]:
        """What of a module is neither trained nor the same in all rows."""
        return {} if self._padded_heads is None else {"fusion.heads_HD": self._padded_heads}

    def step(self, batches: list[Batch], stream: list[int], lr: list[float]) -> Tensor:
        """One step of AdamW of every fusion, on its own batch.

        Args:
            batches: As a `BatchLoader` of one rank makes them.
            stream: Which of them each fusion gets.
            lr: Of each fusion.
        Returns:
            (fusions,) each fusion's summed loss.
        """
        learns_weights = self._plan_dropout(batches[0], self._head_counts[0])[1]
        data = self._stack_batches(batches, stream, self._batch)
        masks = self._draw_masks(batches, stream)
        count = torch.tensor([batches[s].global_count for s in stream], device=self._weights.device)

        def compute_loss(parameters: Any, data: Any, masks: list[Tensor], share: Tensor) -> Any:
            output, batch = self._forward(parameters, data, masks)
            total = compute_loss_sum(output.logits_BK, batch, self._smoothing)
            return total, total + share * compute_modality_weight_loss(output, batch) if learns_weights else total

        self.module.train()
        parameters = self._split_parameters() | self._list_buffers()
        total, every = vmap(compute_loss)(parameters, data, masks, self._weight_loss)
        (gradient,) = torch.autograd.grad((every / count).sum(), self._weights)
        self._update(gradient, lr)
        return total.detach()

    @torch.no_grad()
    def compute_logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """(fusions, batch, classes): what these fusions say of the same windows, in eval mode."""
        padded_rows = duplicate_single(rows)
        data = self._stack_batches([batch], [0] * len(padded_rows), len(batch.label_B))
        parameters = {name: p[padded_rows] for name, p in (self._split_parameters() | self._list_buffers()).items()}

        def compute_one(parameters: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
            return self._forward(parameters, data, [])[0].logits_BK

        self.module.eval()
        return vmap(compute_one)(parameters, data)[: len(rows)]

    def _forward(self, parameters: dict[str, Tensor], data: dict[str, Tensor], masks: list[Tensor]) -> Any:
        inputs = {name: x for name, x in data.items() if "." in name}
        batch = Batch(inputs, data["present"], data["label"], data["weight"], 0, 0)
        with BatchedFusionMode(masks):
            encoded, logits = self.module.encode(inputs, batch.present_BM)
            named = {name.removeprefix("fusion."): p for name, p in parameters.items()}
            fused = functional_call(cast(nn.Module, self.module.fusion), named, (encoded, logits, batch.present_BM))
        output = ClassifierOutput(fused.logits_BK, logits, fused.weights_BM, fused.corrected_BM)
        return cast_output_to_float32(output), batch

    def _stack_batches(self, batches: list[Batch], stream: list[int], size: int) -> dict[str, Tensor]:
        """Each fusion's batch, filled up with rows of weight 0 to a size that does not depend on the others.

        Each has a copy of its own: products with shared ones would be computed in another way.
        """
        device = self._weights.device
        columns = [b.inputs | {"present": b.present_BM, "label": b.label_B, "weight": b.weight_B} for b in batches]
        chosen, data = torch.tensor(stream, device=device), {}
        for name in columns[0]:
            filled = torch.stack([pad_rows(c[name], size, 0 if name == "weight" else None) for c in columns])
            data[name] = filled.to(device)[chosen]
        return data

    def _plan_dropout(self, batch: Batch, heads: int) -> tuple[list["DropoutDraw"], bool]:
        """What a fusion alone draws for a batch of this size, and whether its modality weights learn.

        Args:
            heads: Of its attention.
        """
        size = len(batch.label_B)
        if (size, heads) not in self._draws:
            self.module.train()
            device = self._weights.device
            inputs = {name: x.to(device) for name, x in batch.inputs.items()}
            padded = self._padded_heads[0] if self._padded_heads is not None else None
            seen, output = self._record_dropout(inputs, batch.present_BM.to(device), self._exact_heads.get(heads))
            stacked, _ = self._record_dropout(inputs, batch.present_BM.to(device), padded)
            learns = output.corrected_BM.requires_grad and bool((self._weight_loss > 0).any())
            draws = [
                DropoutDraw(shape, dtype, wider[1:]) for (shape, dtype), (wider, _) in zip(seen, stacked, strict=True)
            ]
            self._draws[size, heads] = draws, learns
        return self._draws[size, heads]

    def _record_dropout(
        self, inputs: dict[str, Tensor], present_BM: Tensor, heads_HD: Tensor | None
    ) -> tuple[list[tuple[tuple[int, ...], torch.dtype]], ClassifierOutput]:
        recorder = DropoutRecorder()
        buffers = {} if heads_HD is None else {"fusion.heads_HD": heads_HD}
        with recorder:
            output = functional_call(self.module, buffers, (inputs, present_BM))
        return recorder.draws, output

    def _draw_masks(self, batches: list[Batch], stream: list[int]) -> list[Tensor]:
        """Dropout masks of every fusion, as it would draw them alone (`engines.base.BaseEngine._compute_loss`)."""
        if not any(self._dropout):
            draws, _ = self._plan_dropout(batches[0], self._head_counts[0])
            return [torch.ones(len(self), 1, device=self._weights.device) for _ in draws]
        device, size = self._weights.device, self._batch
        masks_by_draw: dict[tuple[int, int, int, float], list[Tensor]] = {}
        rows = []
        for s, p, heads in zip(stream, self._dropout, self._head_counts, strict=True):
            key = (batches[s].seed, len(batches[s].label_B), heads, p)
            if key not in masks_by_draw:
                draws, _ = self._plan_dropout(batches[s], heads)  # which draws too: before the seed
                seed_generators(batches[s].seed * 1024, device)
                found = []
                for draw in draws:
                    mask = nn.functional.dropout(torch.ones(draw.shape, dtype=draw.dtype, device=device), p)
                    # Rows that are no heads drop nothing.
                    short = [wide - n for wide, n in zip(draw.padded_shape, mask.shape[1:], strict=True)]
                    mask = nn.functional.pad(mask, [n for more in reversed(short) for n in (0, more)], value=1.0)
                    found.append(pad_rows(mask, size, 1))
                masks_by_draw[key] = found
            rows.append(masks_by_draw[key])
        return [torch.stack(masks) for masks in zip(*rows, strict=True)]

    @torch.no_grad()
    def _update(self, gradient: Tensor, lr: list[float]) -> None:
        clip = [1.0] * len(self)
        if self._clip[0] > 0:
            clip = (self._clip / (gradient.norm(dim=1) + 1e-6)).clamp(max=1).tolist()
        weights, (first, second) = self._weights.detach(), self._adam_state
        for row, (rate, decay) in enumerate(zip(lr, self._decay, strict=True)):
            if clip[row] != 1:
                gradient[row].mul_(clip[row])
            for part, wd in ((slice(None, self._decayed), decay), (slice(self._decayed, None), 0.0)):
                w, g, m, v = ([x[row, part]] for x in (weights, gradient, first, second))
                step = self._step_count.clone()  # which it counts up
                adamw(w, g, m, v, [], [step], lr=rate, weight_decay=wd, **ADAMW_OPTIONS)
        self._step_count += 1


def duplicate_single(rows: Iterable[int]) -> list[int]:
    """A single one twice: products of a stack of one are computed in another way than those of two or more."""
    found = list(rows)
    return 2 * found if len(found) == 1 else found


def pad_rows(x: Tensor, size: int, value: float | None) -> Tensor:
    """As many rows, the new ones of one value, or like the first."""
    short = size - len(x)
    if not short:
        return x
    first = x[:1] if value is None else torch.full_like(x[:1], value)
    return torch.cat([x, first.expand(short, *x.shape[1:])])
