"""From an experiment to modules: one `match` per closed union, and the classifier that puts the parts together."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from eav_ray.config import Experiment, get_modality_info
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.adapters import add_adapters, is_adapter
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    compute_unimodal_logits,
    pick_features,
    pick_subject_statistics,
)
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.models.fusion.base import FusionOutput
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.models.layers import ChannelStandardizer
from eav_ray.words import format_count


class ClassifierOutput(NamedTuple):
    logits_BK: Tensor
    unimodal_logits: dict[str, Tensor]
    weights_BM: Tensor
    corrected_BM: Tensor


class Classifier(nn.Module):
    """Encoders, a head on each, and their fusion.

    With one modality there is nothing to fuse: the logits are those of its head.
    """

    def __init__(self, experiment: Experiment, shapes: DataShapes) -> None:
        super().__init__()
        self.modalities: list[str] = sorted(experiment.data.modalities)
        self.n_outputs = shapes.n_outputs
        encoders = {m: build_encoder(experiment, m, shapes) for m in self.modalities}
        self.adapted: set[str] = set()  # modalities whose encoders learn by adapters
        for m, encoder in encoders.items():
            optim = experiment.train.encoders[m]
            if optim.lora_rank:
                sizes = {"rank": optim.lora_rank, "alpha": optim.lora_alpha, "n_blocks": optim.trained_blocks}
                add_adapters(encoder, m, **sizes)
                self.adapted.add(m)
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({m: encoders[m].build_head(shapes.n_outputs) for m in self.modalities})
        self.normalise = ChannelStandardizer(shapes.eeg_channels)
        self.fusion = None
        if len(self.modalities) > 1:
            widths, times_s = ({m: getattr(e, key) for m, e in encoders.items()} for key in ("width", "times_s"))
            self.fusion = build_fusion(experiment, widths, times_s, shapes.n_outputs)
        self.frozen = False
        self.frozen_modules: list[nn.Module] = []  # inside an encoder that learns in part
        self.subject_normalised = experiment.list_normalised_modalities()
        if experiment.runtime.gradient_checkpointing:
            for encoder in encoders.values():
                encoder.enable_gradient_checkpointing()
        # Under a fusion that learns, the heads are probes: they read the encoders and do not pull at them.
        self.detach_heads = self.fusion is not None and any(True for _ in self.fusion.parameters())

    def freeze_encoders(self, frozen: bool) -> None:
        """Frozen encoders get no gradient and stay in eval mode, whatever mode the rest is in.

        What of them learns as the head does, as a mix over layers, learns all the same.
        """
        self.frozen = frozen
        self.frozen_modules = []
        for m, encoder in self.encoders.items():
            assert isinstance(encoder, Encoder)
            encoder.requires_grad_(not frozen)
            for name, parameter in encoder.named_parameters():
                if name in encoder.head_parameters:
                    parameter.requires_grad_(True)
                elif m in self.adapted:  # what no published weights have learns beside adapters
                    parameter.requires_grad_(not frozen and (is_adapter(name) or "." not in name))
        self.train(self.training)

    def freeze_lower_blocks(self, trained_blocks: int) -> None:
        """Let only the last blocks of encoders learn, and what follows them; the others stay in eval mode.

        Raises:
            ConfigError: An encoder has no blocks, or not as many.
        """
        for m in self.modalities:
            if m in self.adapted:  # its adapters are in those blocks alone
                continue
            encoder = self.encoders[m]
            assert isinstance(encoder, Encoder)
            groups = encoder.group_parameters()
            if trained_blocks >= len(groups):
                raise ConfigError(
                    f"train.encoders.{m}.trained_blocks is {trained_blocks}, but the encoder has "
                    f"{format_count(len(groups) - 1, 'block')}; set it to fewer, or to 0 for all"
                )
            kept = {name for group in groups[:-trained_blocks] for name in group} - {*encoder.head_parameters}
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name not in kept)
            for module in encoder.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    self.frozen_modules.append(module)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen:
            self.encoders.eval()
        for module in self.frozen_modules:
            module.eval()
        return self

    def prepare_input(self, inputs: Mapping[str, Tensor], modality: str) -> Tensor | Features:
        """Stored windows as the modality's encoder takes them. One that normalises within subjects does it itself."""
        if (features := pick_features(inputs, modality)) is not None:
            return features
        x = inputs[modality]
        is_standardised = get_modality_info(modality).has_named_channels and modality not in self.subject_normalised
        return self.normalise(x) if is_standardised else x

    def _run_encoder(self, modality: str, inputs: dict[str, Tensor], present_B: Tensor) -> EncoderOutput:
        x = self.prepare_input(inputs, modality)
        subject = pick_subject_statistics(inputs, modality)
        if subject is not None:
            return self.encoders[modality](x, present_B, subject)
        if modality in self.subject_normalised and not present_B.is_meta:  # where only the arithmetic is counted
            raise DataError(
                f"this model normalises {modality} within subjects (model.{modality}.subject_normalisation), and "
                "nothing says by which statistics; give it whole recordings of known subjects"
            )
        return self.encoders[modality](x, present_B)

    def encode(
        self, inputs: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[dict[str, EncoderOutput], dict[str, Tensor]]:
        """Tokens and unimodal logits. Every encoder runs, whatever is present: ranks must not diverge."""
        encoded: dict[str, EncoderOutput] = {}
        logits: dict[str, Tensor] = {}
        for column, m in enumerate(self.modalities):
            encoded[m] = self._run_encoder(m, inputs, present_BM[:, column])
            logits[m] = compute_unimodal_logits(self.heads[m], encoded[m], detach=self.detach_heads)
        return encoded, logits

    def fuse(
        self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor
    ) -> ClassifierOutput:
        return fuse(self.fusion, encoded, logits, present_BM)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> ClassifierOutput:
        return self.fuse(*self.encode(inputs, present_BM), present_BM)


class HeadClassifier(nn.Module):
    """The head of one frozen encoder on its features: the same names and numbers as inside a Classifier.

    Inputs are `<modality>.tokens` (B, N, D), `.mask` (B, N) and `.pooled` (B, D).

    Attributes:
        frozen_tensors: Every other tensor of the classifier, by name, which a checkpoint holds too.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        (self.modality,) = self.modalities = classifier.modalities
        self.heads, self.fusion = classifier.heads, None
        self.frozen_tensors = {n: t for n, t in classifier.state_dict().items() if not n.startswith("heads.")}

    def encode(
        self, inputs: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[dict[str, EncoderOutput], dict[str, Tensor]]:
        encoded = EncoderOutput(*(inputs[f"{self.modality}.{array}"] for array in ("tokens", "mask", "pooled")))
        return {self.modality: encoded}, {self.modality: compute_unimodal_logits(self.heads[self.modality], encoded)}

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> ClassifierOutput:
        return fuse(None, *self.encode(inputs, present_BM), present_BM)


class FusionClassifier(nn.Module):
    """Fusion on what frozen encoders left in the embedding cache: the same names and numbers as inside a Classifier.

    Inputs are `<modality>.tokens` (B, N, D), `.mask` (B, N), `.pooled` (B, D) and `.logits` (B, classes).
    """

    def __init__(self, fusion: nn.Module, modalities: list[str]) -> None:
        super().__init__()
        self.fusion, self.modalities = fusion, sorted(modalities)

    def encode(
        self, inputs: dict[str, Tensor], present_BM: Tensor
    ) -> tuple[dict[str, EncoderOutput], dict[str, Tensor]]:
        encoded = {
            m: EncoderOutput(inputs[f"{m}.tokens"], inputs[f"{m}.mask"], inputs[f"{m}.pooled"]) for m in self.modalities
        }
        return encoded, {m: inputs[f"{m}.logits"] for m in self.modalities}

    def fuse(
        self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor
    ) -> ClassifierOutput:
        return fuse(self.fusion, encoded, logits, present_BM)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> ClassifierOutput:
        return self.fuse(*self.encode(inputs, present_BM), present_BM)


def fuse(
    fusion: nn.Module | None, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor
) -> ClassifierOutput:
    if not present_BM.any(1).all():
        raise DataError("a window has none of the modalities of this experiment; leave it out or add its modality")
    if fusion is None:
        (modality,) = logits
        fused = FusionOutput(logits[modality], present_BM.float(), present_BM.float())
    else:
        fused = fusion(encoded, logits, present_BM)
    return ClassifierOutput(fused.logits_BK, logits, fused.weights_BM, fused.corrected_BM)
