"""onnxruntime computes of every kind of encoder and fusion what torch does, whatever is masked or missing."""

from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from eav_ray.config import MODALITIES, Experiment, override
from eav_ray.config.model_sections import KIND_PLACES
from eav_ray.data.modalities.registry import get_modality
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes, Encoder, EncoderOutput, SubjectStatistics
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.models.onnx_graphs import EncoderGraph, Graph, export_encoder, export_fusion, list_encoder_inputs

TOLERANCE = 1e-4
SHAPES = DataShapes(5, 3)
GIVEN = "given"  # features, or signals, that stand under this name
# As small as each kind goes; one that is not named here has its defaults.
SIZES: dict[str, dict[str, Any]] = {
    "eegformer": {"filters": 2, "width": 16, "temporal_width": 16, "segments": 4, "depth": 1, "heads": 4},
    "eav_transformer": {"width": 12, "depth": 1, "segments": 5},
    "ast": {"width": 16, "depth": 1, "heads": 2, "stride": 16, "max_length": 256},
    "speech": {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "settings": {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    },
    "vit": {"width": 16, "depth": 1, "heads": 2, "image_size": 32, "patch": 16, "frames": 2},
    "backbone": {"frames": 2},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "wavlm": {"model.audio": {"kind": "speech", **SIZES["speech"], "architecture": "wavlm"}},
    "whisper": {"model.audio": {"kind": "speech", "width": 16, "depth": 1, "heads": 2, "architecture": "whisper"}},
    "eegformer within subjects": {"model.eeg": {"kind": "eegformer", **SIZES["eegformer"]}},
    "covariance within subjects": {"model.eeg": {"kind": "covariance"}},
}
PREPROCESSING = {
    "preprocessing.window_s": 2,
    "preprocessing.video": {"fps": 2, "size": 32},
    "preprocessing.eeg.hz": 100,
}


def list_kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    """Every kind of encoder that is known: the modality, and the changes that make an experiment of it."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for m in MODALITIES:
        for kind in KIND_PLACES[f"model.{m}"].list_kinds():
            found[kind] = (m, {f"model.{m}": {"kind": kind, **SIZES.get(kind, {})}})
    found["features"] = (GIVEN, {"preprocessing.features": {GIVEN: {"width": 3, "steps": 4}}})
    found["signal"] = (GIVEN, {"preprocessing.features": {GIVEN: {"signals": ["ecg", "eda"], "steps": 64}}})
    for name, changes in VARIANTS.items():
        (place,) = changes
        m = place.partition(".")[2]
        if name.endswith("within subjects"):
            access = {"split.access": "unlabelled_block", f"model.{m}.subject_normalisation": "standardise"}
            found[name] = (m, changes | access)
        else:
            found[name] = (m, changes)
    return found


KINDS = list_kinds()


def make_classifier(kind: str) -> tuple[Experiment, str, Classifier]:
    modality, changes = KINDS[kind]
    experiment = override(Experiment(), PREPROCESSING | changes | {"data.modalities": [modality]})
    torch.manual_seed(0)
    classifier = Classifier(experiment, SHAPES).eval()
    classifier.normalise.mean += 3
    classifier.normalise.sd *= 20
    return experiment, modality, classifier


def draw_windows(experiment: Experiment, modality: str, n: int, seed: int = 0) -> Tensor:
    """Noise, with what is special about some windows: a masked electrode, silence, a short recording, NaN."""
    rng, kind = np.random.default_rng(seed), get_modality(modality)
    x = kind.draw_noise(rng, (n, *kind.compute_shape(experiment.preprocessing, SHAPES.eeg_channels)))
    if modality == "eeg":
        x = 20 * x + 3
        x[0, 1] = 0
    elif modality == "audio":
        x[0, :4000] *= 1e-4
        x[0, 20_000:] = 0
        x[1:2] = 0
    elif modality == GIVEN:
        x[0, 0] = np.nan
        x[0, 1, 0] = np.nan
        x[1:2, : x.shape[1] // 2] = np.nan
    return torch.from_numpy(x)


def run(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.model, providers=["CPUExecutionProvider"])
    values = session.run(list(graph.outputs), {i.name: inputs[i.name].numpy() for i in session.get_inputs()})
    return dict(zip(graph.outputs, map(np.asarray, values), strict=True))


def compare(found: dict[str, np.ndarray], expected: tuple[Tensor, ...]) -> None:
    for (name, value), tensor in zip(found.items(), expected, strict=True):
        assert value.dtype == tensor.numpy().dtype and value.shape == tensor.shape, name
        np.testing.assert_allclose(value, tensor.numpy(), rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def test_all_kinds_of_the_package_are_there() -> None:
    """What is under test is found, not listed."""
    assert len(KINDS) >= 15 and set(SIZES) <= set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_the_same_in_onnxruntime(kind: str) -> None:
    experiment, m, classifier = make_classifier(kind)
    encoder = classifier.encoders[m]
    assert isinstance(encoder, Encoder)
    prepared = classifier.prepare_input({m: draw_windows(experiment, m, 6, seed=1)}, m)
    encoder.fit_statistics([(prepared, None)])
    graph = export_encoder(classifier, m, draw_windows(experiment, m, 3))
    assert graph.starts_at == ("windows" if encoder.exports_windows else "features")
    for n in (1, 2, 5):
        windows, present = draw_windows(experiment, m, n, seed=n), torch.arange(n) % 3 != 1
        names, inputs = list_encoder_inputs(classifier, m, windows)
        subject = None
        if m in classifier.subject_normalised:
            inputs[-2:] = [torch.randn_like(inputs[-2]), torch.rand_like(inputs[-1]) + 0.5]
            subject = SubjectStatistics(*inputs[-2:])
        with torch.no_grad():
            x = classifier.prepare_input({m: windows}, m)
            encoded = encoder(x, present) if subject is None else encoder(x, present, subject)
            expected = (*encoded, EncoderGraph(classifier, m)(present, *inputs)[-1])
        compare(run(graph, {"present": present, **dict(zip(names, inputs, strict=True))}), expected)


WIDTHS, COUNTS = {"audio": 12, "eeg": 8, "video": 12}, {"audio": 4, "eeg": 3, "video": 2}


def encode(n: int) -> dict[str, tuple[Tensor, ...]]:
    """What three encoders might make of windows; some tokens are masked."""
    return {
        m: (
            torch.randn(n, COUNTS[m], WIDTHS[m]),
            torch.rand(n, COUNTS[m]).argsort(1) > 0,
            torch.randn(n, WIDTHS[m]),
            torch.randn(n, 3),
        )
        for m in WIDTHS
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KIND_PLACES["fusion"].list_kinds())
def test_a_fusion_is_the_same_in_onnxruntime(kind: str) -> None:
    sizes = {"shared_attention": {"width": 16, "heads": 4, "n_query_steps": 2}, "single_token": {"heads": 4}}
    sizes |= {"bottleneck": {"width": 16, "heads": 4, "depth": 2}, "gated": {"width": 16}}
    section = {"kind": kind, **sizes.get(kind, {})}
    numbers = {"data.targets": {"columns": ["a", "b", "c"], "path": "t.csv"}} if kind == "mean" else {}
    widths = {f"model.{m}": {**SIZES[k], "kind": k} for m, k in (("audio", "ast"), ("video", "vit"))}
    experiment = override(
        Experiment(), PREPROCESSING | {"model.eeg.kind": "bandpower", "fusion": section} | widths | numbers
    )
    torch.manual_seed(0)
    times = {m: torch.linspace(0, 2, COUNTS[m]) for m in COUNTS}
    fusion = build_fusion(experiment, WIDTHS, times, 3).eval()
    graph = export_fusion(fusion, encode(3))
    combinations = torch.tensor([c for c in product([False, True], repeat=3) if any(c)])
    for present in (combinations, combinations[:1], combinations[-2:]):
        encoded = encode(len(present))
        for column, m in enumerate(sorted(encoded)):
            for tensor in (x for x in encoded[m] if x.is_floating_point()):
                tensor[~present[:, column]] = float("nan")  # what nothing may see
        logits = {m: parts[-1] for m, parts in encoded.items()}
        with torch.no_grad():
            expected = fusion({m: EncoderOutput(*parts[:3]) for m, parts in encoded.items()}, logits, present)
        inputs = {f"{m}.{name}": x for m, parts in encoded.items() for name, x in zip(OUTPUTS, parts, strict=True)}
        compare(run(graph, {"present": present, **inputs}), tuple(expected))


OUTPUTS = ("tokens", "mask", "pooled", "logits")


class Untraceable(nn.Module):
    def forward(self, encoded: Any, logits: dict[str, Tensor], present_BM: Tensor) -> tuple[Tensor, ...]:
        assert float(logits["audio"].sum()) < 1e9  # depends on values
        return logits["audio"], present_BM.float(), present_BM.float()


def test_what_cannot_be_written_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"the fusion cannot be written as ONNX \(.*\); export without --onnx"
    ) as caught:
        export_fusion(Untraceable(), encode(3))
    assert len(str(caught.value).splitlines()) == 1
