"""How long onnxruntime takes for a network beside torch: every kind of encoder with its head, and every fusion.

    python -m benchmarks.onnx_latency [runs=30]

Small sizes, one thread each, batches of 1 and 32 windows of 5 s. Each graph starts where an exported one does, and
torch computes the same from there. The two are timed in turn, so that what else the machine does meets both; the ratio
is that of each pair. Outputs are compared first.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, override
from eav_ray.config.model_sections import KIND_PLACES
from eav_ray.data.modalities.registry import get_modality
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.models.onnx_graphs import (
    EXAMPLE_WINDOWS,
    EncoderGraph,
    FusionGraph,
    Graph,
    export_encoder,
    export_fusion,
    list_encoder_inputs,
)

SHAPES, BATCHES, WARM_UP = DataShapes(30, 5), (1, 32), 3
TOLERANCE, MIN_SPEED = 1e-4, 1.0
PREPROCESSING = {"preprocessing.video": {"fps": 5, "size": 64}, "preprocessing.eeg.hz": 100}
SPEECH = {"width": 96, "depth": 3, "heads": 3, "settings": {"conv_dim": [64] * 7, "num_conv_pos_embedding_groups": 4}}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "eegformer": ("eeg", {"filters": 16, "width": 128, "temporal_width": 128, "depth": 1, "heads": 8}),
    "eav_transformer": ("eeg", {}),
    "bandpower": ("eeg", {}),
    "covariance": ("eeg", {}),
    "ast": ("audio", {"width": 96, "depth": 4, "heads": 3, "stride": 16}),
    "mfcc": ("audio", {}),
    "speech": ("audio", SPEECH),
    "vit": ("video", {"image_size": 64, "patch": 16, "width": 96, "depth": 3, "heads": 3, "frames": 5}),
    "backbone": ("video", {"frames": 5}),
    "features": ("given", {}),
    "signal": ("given", {}),
}
GIVEN = {"features": {"width": 88, "steps": 10}, "signal": {"signals": ["ecg", "eda"], "steps": 500}}
FUSION_SIZES: dict[str, dict[str, Any]] = {
    "shared_attention": {"width": 64, "heads": 4},
    "bottleneck": {"width": 64, "heads": 4},
    "gated": {"width": 64},
    "single_token": {"heads": 4},
}
WIDTHS, COUNTS = {"audio": 96, "eeg": 128, "video": 96}, {"audio": 32, "eeg": 8, "video": 5}


@dataclass
class Case:
    """One network, in torch and as a graph.

    Attributes:
        make_inputs: Inputs of so many windows, by the graph's names.
    """

    name: str
    module: nn.Module
    graph: Graph
    make_inputs: Callable[[int], dict[str, Tensor]]
    torch_ms: dict[int, list[float]] = field(default_factory=dict)
    onnx_ms: dict[int, list[float]] = field(default_factory=dict)
    error: float = 0.0

    def measure(self, runs: int) -> None:
        """Time both in turn."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.graph.model, options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        for n in BATCHES:
            inputs = self.make_inputs(n)
            given = [inputs[name] for name in self.graph.inputs]
            fed = {name: inputs[name].numpy() for name in names}
            self.torch_ms[n], self.onnx_ms[n] = [], []
            with torch.inference_mode():
                found, expected = session.run(list(self.graph.outputs), fed), self.module(*given)
                for value, tensor in zip(found, expected, strict=True):
                    difference = np.abs(np.asarray(value, np.float64) - tensor.double().numpy())
                    self.error = max(self.error, float(difference.max()))
                for k in range(WARM_UP + runs):
                    began = time.perf_counter()
                    self.module(*given)
                    between = time.perf_counter()
                    session.run(None, fed)
                    if k >= WARM_UP:
                        self.torch_ms[n].append(1e3 * (between - began))
                        self.onnx_ms[n].append(1e3 * (time.perf_counter() - between))

    def list_ratios(self, n: int) -> np.ndarray:
        return np.array(self.torch_ms[n]) / np.array(self.onnx_ms[n])

    def format_row(self) -> str:
        cells = [self.name]
        for n in BATCHES:
            low, middle, high = np.quantile(self.list_ratios(n), (0.25, 0.5, 0.75))
            times = (format_spread(one[n], 2 if max(one[n]) < 100 else 0) for one in (self.torch_ms, self.onnx_ms))
            cells += [*times, f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        return f"| {' | '.join([*cells, f'{self.error:.1e}'])} |"


def make_encoder_case(kind: str) -> Case:
    modality, sizes = ENCODERS[kind]
    changes: dict[str, Any] = PREPROCESSING | {"data.modalities": [modality]}
    if modality == "given":
        changes |= {"preprocessing.features": {modality: GIVEN[kind]}}
    else:
        changes |= {f"model.{modality}": {"kind": kind, **sizes}}
    experiment = override(Experiment(), changes)
    torch.manual_seed(0)
    classifier = Classifier(experiment, SHAPES).eval()

    def make_inputs(n: int) -> dict[str, Tensor]:
        kind_of_windows, rng = get_modality(modality), np.random.default_rng(n)
        shape = (n, *kind_of_windows.compute_shape(experiment.preprocessing, SHAPES.eeg_channels))
        names, inputs = list_encoder_inputs(
            classifier, modality, torch.from_numpy(kind_of_windows.draw_noise(rng, shape))
        )
        return {"present": torch.ones(n, dtype=torch.bool), **dict(zip(names, inputs, strict=True))}

    windows = get_modality(modality).draw_noise(
        np.random.default_rng(0),
        (EXAMPLE_WINDOWS, *get_modality(modality).compute_shape(experiment.preprocessing, SHAPES.eeg_channels)),
    )
    graph = export_encoder(classifier, modality, torch.from_numpy(windows))
    name = kind if graph.starts_at == "windows" else f"{kind}, from features"
    return Case(name, EncoderGraph(classifier, modality).eval(), graph, make_inputs)


def encode(n: int) -> dict[str, tuple[Tensor, ...]]:
    return {
        m: (
            torch.randn(n, COUNTS[m], WIDTHS[m]),
            torch.ones(n, COUNTS[m], dtype=torch.bool),
            torch.randn(n, WIDTHS[m]),
            torch.randn(n, SHAPES.n_outputs),
        )
        for m in sorted(WIDTHS)
    }


def make_fusion_case(kind: str) -> Case:
    numbers = {"data.targets": {"columns": list("abcde"), "path": "t.csv"}} if kind == "mean" else {}
    sections = {f"model.{ENCODERS[k][0]}": {"kind": k, **ENCODERS[k][1]} for k in ("ast", "eegformer", "vit")}
    fused = {"fusion": {"kind": kind, **FUSION_SIZES.get(kind, {})}}
    experiment = override(Experiment(), PREPROCESSING | sections | fused | numbers)
    torch.manual_seed(0)
    times = {m: torch.linspace(0, 5, n) for m, n in COUNTS.items()}
    fusion = build_fusion(experiment, WIDTHS, times, SHAPES.n_outputs).eval()
    graph = export_fusion(fusion, encode(EXAMPLE_WINDOWS))

    def make_inputs(n: int) -> dict[str, Tensor]:
        tensors = [torch.ones(n, len(WIDTHS), dtype=torch.bool), *(x for parts in encode(n).values() for x in parts)]
        return dict(zip(graph.inputs, tensors, strict=True))

    return Case(f"fusion: {kind}", FusionGraph(fusion, sorted(WIDTHS)).eval(), graph, make_inputs)


def main() -> int:
    _, words = parse_arguments(__doc__, allowed_keys=("runs",))
    torch.set_num_threads(1)
    cases: list[Case] = []
    loads = [os.getloadavg()[0]]
    makers = [(make_encoder_case, kind) for kind in ENCODERS]
    makers += [(make_fusion_case, kind) for kind in KIND_PLACES["fusion"].list_kinds()]
    for make, kind in makers:
        case = make(kind)
        case.measure(int(words.get("runs", 30)))
        loads.append(os.getloadavg()[0])
        print(case.format_row(), flush=True)
        cases.append(case)
    heads = [f"{what}, {n}" for n in BATCHES for what in ("torch, ms", "onnxruntime, ms", "torch / onnxruntime")]
    versions = f"torch {torch.__version__.partition('+')[0]}, onnxruntime {onnxruntime.__version__}"
    lines = [
        f"{versions}, one thread each; {words.get('runs', 30)} pairs. Milliseconds are median (range) of a batch of 1 "
        "or 32 windows, ratios the median (quartiles) of the pairs: above 1, onnxruntime is faster. Load of the "
        f"machine over a minute, {os.cpu_count()} cores: {min(loads):.1f} to {max(loads):.1f}; others worked on it, "
        "so ratios say more than milliseconds.",
        "",
        f"| network | {' | '.join(heads)} | largest difference |",
        f"|---|{'---|' * (len(heads) + 1)}",
        *(case.format_row() for case in cases),
    ]
    ratios = {n: float(np.median([np.median(case.list_ratios(n)) for case in cases])) for n in BATCHES}
    goals = [Goal("largest difference of any output", max(c.error for c in cases), TOLERANCE, at_least=False)]
    goals += [Goal(f"median ratio of all networks, batch {n}", ratio, MIN_SPEED) for n, ratio in ratios.items()]
    return finish_benchmark("onnx_latency", "Latency by torch and by onnxruntime", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
