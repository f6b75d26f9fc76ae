"""From an experiment to modules: one `match` per closed union, and the classifier that puts the parts together."""

from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn

from eav_ray.config import AST as ASTSection
from eav_ray.config import EEGformer as EEGformerSection
from eav_ray.config import Experiment
from eav_ray.config import ViT as ViTSection
from eav_ray.errors import DataError
from eav_ray.models.audio import AST
from eav_ray.models.eegformer import EEGformer
from eav_ray.models.encoder import Encoded, Encoder
from eav_ray.models.fusion import Fused, LateMean, SharedAttention
from eav_ray.models.video import ViT


class Shapes(NamedTuple):
    """What modules must know of the data."""

    eeg_channels: int
    n_outputs: int


class Output(NamedTuple):
    logits_BK: Tensor
    unimodal: dict[str, Tensor]
    weights_BM: Tensor
    corrected_BM: Tensor


def build_encoder(experiment: Experiment, modality: str, shapes: Shapes) -> Encoder:
    profile = experiment.profile
    section = getattr(experiment.model, modality)
    match section:
        case EEGformerSection():
            return EEGformer(
                shapes.eeg_channels,
                profile.eeg.hz * profile.window_s,
                window_s=profile.window_s,
                filters=section.filters,
                width=section.width,
                temporal_width=section.temporal_width,
                segments=section.segments,
                depth=section.depth,
                heads=section.heads,
                dropout=section.dropout,
            )
        case ASTSection():
            return AST(
                window_s=profile.window_s,
                width=section.width,
                depth=section.depth,
                heads=section.heads,
                max_length=section.max_length,
                stride=section.stride,
                dropout=section.dropout,
            )
        case ViTSection():
            return ViT(
                section.name,
                window_s=profile.window_s,
                stored=profile.video.fps * profile.window_s,
                frames=section.frames,
                image_size=section.image_size,
                patch=section.patch,
                width=section.width,
                depth=section.depth,
                heads=section.heads,
                dropout=section.dropout,
            )
        case _:
            assert_never(section)


def build_fusion(
    experiment: Experiment, widths: dict[str, int], times_s: dict[str, Tensor], n_outputs: int
) -> nn.Module:
    """Fusion of tokens of these widths and times, (N_m,) seconds; it needs no encoder, so a search builds it alone."""
    match experiment.fusion.kind:
        case "late_mean":
            return LateMean()
        case "shared_attention":
            return SharedAttention(
                widths,
                times_s,
                window_s=experiment.profile.window_s,
                n_outputs=n_outputs,
                width=experiment.fusion.width,
                heads=experiment.fusion.heads,
                dropout=experiment.fusion.dropout,
            )
        case _:
            assert_never(experiment.fusion.kind)


class Normaliser(nn.Module):
    """Standardises each EEG channel with statistics of the training rows; they travel with the weights."""

    mean: Tensor
    sd: Tensor

    def __init__(self, n_chans: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_chans))
        self.register_buffer("sd", torch.ones(n_chans))

    def forward(self, x_BST: Tensor) -> Tensor:
        return (x_BST - self.mean.float()[:, None]) / self.sd.float()[:, None]


class Classifier(nn.Module):
    """Encoders, a linear head on each, and their fusion.

    With one modality there is nothing to fuse: the logits are those of its head.
    """

    def __init__(self, experiment: Experiment, shapes: Shapes) -> None:
        super().__init__()
        self.names: list[str] = sorted(experiment.data.modalities)
        self.n_outputs = shapes.n_outputs
        encoders = {m: build_encoder(experiment, m, shapes) for m in self.names}
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({m: nn.Linear(encoders[m].width, shapes.n_outputs) for m in self.names})
        self.normalise = Normaliser(shapes.eeg_channels)
        self.fusion = None
        if len(self.names) > 1:
            widths, times_s = ({m: getattr(e, key) for m, e in encoders.items()} for key in ("width", "times_s"))
            self.fusion = build_fusion(experiment, widths, times_s, shapes.n_outputs)
        # Under a fusion that learns, the heads are probes: they read the encoders and do not pull at them.
        self.probes = self.fusion is not None and any(True for _ in self.fusion.parameters())

    def encode(self, inputs: dict[str, Tensor], present_BM: Tensor) -> tuple[dict[str, Encoded], dict[str, Tensor]]:
        """Tokens and unimodal logits. Every encoder runs, whatever is present: ranks must not diverge."""
        encoded: dict[str, Encoded] = {}
        logits: dict[str, Tensor] = {}
        for column, m in enumerate(self.names):
            x = self.normalise(inputs[m]).to(dtype_of(self)) if m == "eeg" else inputs[m]
            encoded[m] = self.encoders[m](x, present_BM[:, column])
            pooled_BD = encoded[m].pooled_BD.detach() if self.probes else encoded[m].pooled_BD
            logits[m] = self.heads[m](pooled_BD)
        return encoded, logits

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        encoded, logits = self.encode(inputs, present_BM)
        return fuse(self.fusion, encoded, logits, present_BM)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The precision that a module computes in; float32 where it has no parameters."""
    return next((p.dtype for p in module.parameters()), torch.float32)


class FusionAlone(nn.Module):
    """Fusion on what frozen encoders left in the embedding cache: the same names and numbers as inside a Classifier.

    Inputs are `<modality>.tokens` (B, N, D), `<modality>.mask` (B, N) and `<modality>.logits` (B, classes).
    """

    def __init__(self, fusion: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.fusion, self.names = fusion, sorted(names)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> Output:
        logits = {m: inputs[f"{m}.logits"] for m in self.names}
        encoded = {
            m: Encoded(tokens.to(dtype_of(self)), inputs[f"{m}.mask"], tokens.mean(1))
            for m in self.names
            for tokens in (inputs[f"{m}.tokens"],)
        }
        return fuse(self.fusion, encoded, logits, present_BM)


def fuse(
    fusion: nn.Module | None, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor
) -> Output:
    if not present_BM.any(1).all():
        raise DataError("a window has none of the modalities of this experiment; leave it out or add its modality")
    if fusion is None:
        (only,) = logits
        fused = Fused(logits[only], present_BM.float(), present_BM.float())
    else:
        fused = fusion(encoded, logits, present_BM)
    return Output(fused.logits_BK, logits, fused.weights_BM, fused.corrected_BM)
