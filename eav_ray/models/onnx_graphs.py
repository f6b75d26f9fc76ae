"""Write the networks of a classifier as ONNX graphs: one for each encoder with its head, and one for the fusion.

Graphs take any number of windows. Where computing the features of an encoder needs what ONNX has no operators for, its
graph starts at the features.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eav_ray.config import get_modality_info
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import (
    KNOWN_SUFFIX,
    MEAN_SUFFIX,
    SD_SUFFIX,
    VALUES_SUFFIX,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    compute_unimodal_logits,
)

EXAMPLE_WINDOWS = 3  # the exporter takes the axis of windows for fixed where there is one
PRESENT = "present"
NOISY_LOGGERS = ("torch.onnx", "onnx_ir", "onnxscript")  # of the exporter, on its own ways and on other libraries
ENCODER_OUTPUTS, FUSION_OUTPUTS = ("tokens", "mask", "pooled", "logits"), ("logits", "weights", "corrected")


@dataclass(frozen=True)
class Graph:
    """One network as ONNX.

    Attributes:
        model: The bytes of the file.
        inputs: Shape and dtype by name; None stands for the number of windows.
        outputs: Names, in order.
        starts_at: `windows`, or `features` that are computed before.
        example: What torch computes of the windows that it was made with.
    """

    model: bytes
    inputs: dict[str, dict[str, Any]]
    outputs: tuple[str, ...]
    starts_at: str = ""
    example: tuple[Tensor, ...] = ()


class EncoderGraph(nn.Module):
    """An encoder with its head, of tensors alone: (present, input, ...) to tokens, mask, pooled and logits."""

    def __init__(self, classifier: Classifier, modality: str) -> None:
        super().__init__()
        encoder = classifier.encoders[modality]
        assert isinstance(encoder, Encoder)
        self.encoder, self.head = encoder, classifier.heads[modality]
        self.is_normalised = modality in classifier.subject_normalised
        is_standardised = get_modality_info(modality).has_named_channels and not self.is_normalised
        self.standardise = classifier.normalise if is_standardised and encoder.exports_windows else None

    def forward(self, present_B: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        subject = SubjectStatistics(given.pop(-2), given.pop(-1)) if self.is_normalised else None
        x = given[0] if self.encoder.exports_windows else Features(given[0], given[1])
        if self.standardise is not None:
            x = self.standardise(x)
        encoded = self.encoder(x, present_B) if subject is None else self.encoder(x, present_B, subject)
        return (*encoded, compute_unimodal_logits(self.head, encoded))


class FusionGraph(nn.Module):
    """A fusion, of tensors alone: (present, tokens, mask, pooled and logits of each modality) to logits and weights."""

    def __init__(self, fusion: nn.Module, modalities: Sequence[str]) -> None:
        super().__init__()
        self.fusion, self.modalities = fusion, list(modalities)

    def forward(self, present_BM: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        encoded, logits = {}, {}
        for k, m in enumerate(self.modalities):
            tokens, mask, pooled, logits[m] = inputs[4 * k : 4 * k + 4]
            encoded[m] = EncoderOutput(tokens, mask, pooled)
        return tuple(self.fusion(encoded, logits, present_BM))


def export_encoder(classifier: Classifier, modality: str, windows: Tensor) -> Graph:
    """Write an encoder and its head.

    Args:
        windows: Some windows, as stored: (windows, ...).
    Raises:
        ConfigError: The exporter cannot write this kind of encoder.
    """
    encoder = classifier.encoders[modality]
    assert isinstance(encoder, Encoder)
    names, inputs = list_encoder_inputs(classifier, modality, windows)
    graph = EncoderGraph(classifier, modality).eval()
    present = torch.ones(len(windows), dtype=torch.bool)
    model = _export(graph, [PRESENT, *names], [present, *inputs], ENCODER_OUTPUTS, f"the encoder of {modality}")
    starts_at = "windows" if encoder.exports_windows else "features"
    with torch.no_grad():
        example = graph(present, *inputs)
    return Graph(model, _describe_inputs([PRESENT, *names], [present, *inputs]), ENCODER_OUTPUTS, starts_at, example)


def list_encoder_inputs(classifier: Classifier, modality: str, windows: Tensor) -> tuple[list[str], list[Tensor]]:
    """List names and values of what the graph of an encoder takes beside what is present, by windows as stored.

    Of an encoder that normalises within subjects, mean and SD are 0 and 1.
    """
    encoder = classifier.encoders[modality]
    assert isinstance(encoder, Encoder)
    names, inputs = [modality], [windows]
    features = None
    if not encoder.exports_windows or modality in classifier.subject_normalised:
        prepared = classifier.prepare_input({modality: windows}, modality)
        assert isinstance(prepared, Tensor)
        with torch.no_grad():
            features = encoder.compute_features(prepared)
    if not encoder.exports_windows:
        assert features is not None
        names, inputs = [f"{modality}{VALUES_SUFFIX}", f"{modality}{KNOWN_SUFFIX}"], [*features]
    if modality in classifier.subject_normalised:
        assert features is not None
        shape = (len(windows), features.values.shape[-1])
        names += [f"{modality}{MEAN_SUFFIX}", f"{modality}{SD_SUFFIX}"]
        inputs += [torch.zeros(shape), torch.ones(shape)]
    return names, inputs


def export_fusion(fusion: nn.Module, encoded: Mapping[str, Sequence[Tensor]]) -> Graph:
    """Write a fusion.

    Args:
        encoded: Tokens, mask, pooled features and logits of each modality, of some windows.
    Raises:
        ConfigError: The exporter cannot write this kind of fusion.
    """
    modalities = sorted(encoded)
    names = [PRESENT, *(f"{m}.{output}" for m in modalities for output in ENCODER_OUTPUTS)]
    n_windows = len(encoded[modalities[0]][0])
    present = torch.ones(n_windows, len(modalities), dtype=torch.bool)
    inputs = [present, *(tensor for m in modalities for tensor in encoded[m])]
    model = _export(FusionGraph(fusion, modalities).eval(), names, inputs, FUSION_OUTPUTS, "the fusion")
    return Graph(model, _describe_inputs(names, inputs), FUSION_OUTPUTS)


def _describe_inputs(names: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": [None, *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}
        for name, x in zip(names, inputs, strict=True)
    }


def _export(
    module: nn.Module, names: Sequence[str], inputs: Sequence[Tensor], outputs: Sequence[str], what: str
) -> bytes:
    batch = torch.export.Dim.DYNAMIC
    shapes: Any = ({0: batch}, tuple({0: batch} for _ in inputs[1:]))
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own ways
            program = torch.onnx.export(
                module,
                tuple(x.contiguous() for x in inputs),
                dynamo=True,
                verbose=False,
                input_names=list(names),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                external_data=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"{what} cannot be written as ONNX ({reason}); export without --onnx") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    return program.model_proto.SerializeToString()
