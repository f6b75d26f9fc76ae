"""Write the networks of a checkpoint as ONNX files, with what a program must know to run them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from eav_ray.config import get_modality_info
from eav_ray.config.extras import require_extra
from eav_ray.data.modalities.registry import get_modality
from eav_ray.errors import ConfigError
from eav_ray.evaluation.onnx_model import GRAPH_FILE, GRAPH_FORMAT
from eav_ray.models.onnx_graphs import EXAMPLE_WINDOWS, Graph, export_encoder, export_fusion
from eav_ray.storage import encode_documents
from eav_ray.training.checkpoint import build_trained_model
from eav_ray.training.checkpoint_files import Checkpoint

MAX_BYTES = 2**31 - 2**24  # of a file of protobuf, with room for what is no tensor
WINDOW_KEYS = ("shape", "dtype", "axes", "unit", "hz", "channels")
PACKAGES = {"onnx": "onnx", "onnxscript": "onnxscript"}


def export_graphs(checkpoint: Checkpoint, description: Mapping[str, Any]) -> dict[str, bytes]:
    """Write every network: the content of each file by name, `onnx/graph.json` among them.

    Args:
        description: The exported `config.json`.
    Raises:
        ConfigError: A package is missing, or a network cannot be written.
    """
    require_extra("onnx", "--onnx", PACKAGES, "export without --onnx")
    model = build_trained_model(checkpoint).eval()
    e, shapes = checkpoint.experiment, checkpoint.state.shapes
    for m, encoder in model.encoders.items():
        n_bytes = sum(x.numel() * x.element_size() for x in encoder.state_dict().values())
        if n_bytes > MAX_BYTES:
            raise ConfigError(
                f"the encoder of {m} has {n_bytes / 2**30:.1f} GiB, and a file of ONNX holds 2; export without --onnx"
            )
    rng = np.random.default_rng(0)
    windows: dict[str, torch.Tensor] = {}
    for m in model.modalities:
        shape = get_modality(m).compute_shape(e.preprocessing, shapes.eeg_channels)
        windows[m] = torch.from_numpy(get_modality(m).draw_noise(rng, (EXAMPLE_WINDOWS, *shape)))
    graphs = {m: export_encoder(model, m, windows[m]) for m in model.modalities}
    files = {f"onnx/{m}.onnx": graph.model for m, graph in graphs.items()}
    encoders = {
        m: _describe_graph(graph, f"onnx/{m}.onnx")
        | {
            "starts_at": graph.starts_at,
            "computed_before": _describe_features(checkpoint, m, graph),
            "window": {key: description["modalities"][m][key] for key in WINDOW_KEYS},
        }
        for m, graph in graphs.items()
    }
    fusion = None
    if model.fusion is not None:
        graph = export_fusion(model.fusion, {m: graph.example for m, graph in graphs.items()})
        files["onnx/fusion.onnx"] = graph.model
        fusion = _describe_graph(graph, "onnx/fusion.onnx")
    tree = {
        "format": GRAPH_FORMAT,
        "modalities": model.modalities,
        "encoders": encoders,
        "fusion": fusion,
        "outputs": "standardised numbers: times sd plus mean of config.json"
        if checkpoint.state.scale
        else "logits: their softmax is the probability of each class of config.json",
    }
    return files | {GRAPH_FILE: encode_documents({"graph": tree})["graph.json"]}


def _describe_graph(graph: Graph, file: str) -> dict[str, Any]:
    return {"file": file, "inputs": graph.inputs, "outputs": list(graph.outputs)}


def _describe_features(checkpoint: Checkpoint, modality: str, graph: Graph) -> str:
    """Say what has to be computed of a window before its graph; empty where nothing has."""
    normalised = modality in checkpoint.experiment.list_normalised_modalities()
    steps: list[str] = []
    if graph.starts_at == "features":
        if get_modality_info(modality).has_named_channels and not normalised:
            steps.append("windows standardised by normalise.mean and normalise.sd of model.safetensors")
        module = f"eav_ray.models.encoders.{checkpoint.experiment.model[modality].kind}"
        steps.append(f"features and which of them are known: compute_features of the encoder in {module}")
    if normalised:
        steps.append("mean and SD of the features over recordings of the same person")
    return "; ".join(steps)
