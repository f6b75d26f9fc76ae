"""Size and cost of every encoder and fusion: parameters, multiplications with addition, CPU time per window.

    python -m benchmarks.models

One thread; 5 s windows of 30 electrodes, 16 kHz, 25 frames. Writes the table of docs/models.md.
"""

import datetime
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import describe_hardware, format_spread
from eav_ray.config import MODALITIES, Experiment, override
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes, EncoderOutput
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.training.engines.base import limit_training

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ELECTRODES = (
    *(
        "Fp1",
        "Fp2",
        "F7",
        "F3",
        "Fz",
        "F4",
        "F8",
        "T7",
        "C3",
        "Cz",
        "C4",
        "T8",
        "P7",
        "P3",
        "Pz",
        "P4",
        "P8",
        "O1",
        "O2",
    ),
    *("FC5", "FC1", "FC2", "FC6", "CP5", "CP1", "CP2", "CP6", "PO3", "PO4", "Oz"),
)
SHAPES, RUNS = DataShapes(len(ELECTRODES), 5, ELECTRODES), 5
SMALL_VIT = {"image_size": 64, "patch": 16, "width": 96, "depth": 3, "heads": 3, "frames": 5}
ENCODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("EEGformer", "eeg", {}),
    (
        "EEGformer, small",
        "eeg",
        {"model.eeg": {"filters": 16, "width": 128, "temporal_width": 128, "depth": 1, "heads": 8}},
    ),
    ("eav_transformer", "eeg", {"model.eeg": {"kind": "eav_transformer"}}),
    ("bandpower", "eeg", {"model.eeg": {"kind": "bandpower"}}),
    ("covariance", "eeg", {"model.eeg": {"kind": "covariance"}}),
    ("AST, 512 frames", "audio", {}),
    ("AST, 1024 frames", "audio", {"model.audio.max_length": 1024}),
    ("AST, small", "audio", {"model.audio": {"width": 96, "depth": 4, "heads": 3, "stride": 16}}),
    ("mfcc", "audio", {"model.audio": {"kind": "mfcc"}}),
    ("ViT-B/16, 25 frames", "video", {}),
    (
        "ViT, small, 5 frames of 64 px",
        "video",
        {"model.video": SMALL_VIT, "preprocessing.video": {"fps": 1, "size": 64}},
    ),
    ("ConvNeXt atto, 25 frames", "video", {"model.video": {"kind": "backbone"}}),
    ("wav2vec2, base", "audio", {"model.audio": {"kind": "speech"}}),
    *(
        (f"wav2vec2, base, {title}", "audio", {"model.audio": {"kind": "speech"}, f"train.encoders.audio.{key}": value})
        for title, key, value in (
            ("2 of 12 blocks learn", "trained_blocks", 2),
            ("additions of rank 8 learn", "lora_rank", 8),
        )
    ),
    (
        "Whisper, base",
        "audio",
        {"model.audio": {"kind": "speech", "architecture": "whisper", "width": 512, "depth": 6, "heads": 8}},
    ),
    *(
        (
            f"{name} (braindecode), 200 Hz",
            "eeg",
            {"preprocessing.eeg.hz": 200, "model.eeg": {"kind": "braindecode", "name": name} | keys},
        )
        for name, keys in (
            *(
                (name, {})
                for name in ("EEGNet", "ShallowFBCSPNet", "EEGConformer", "CBraMod", "Labram", "BIOT", "EEGPT")
            ),
            ("EEGDINO", {"channels": ELECTRODES[:19]}),
            ("SignalJEPA", {}),
        )
    ),
)
FUSIONS = ("shared_attention", "bottleneck", "gated", "single_token")


def make_input(e: Experiment, modality: str) -> Tensor:
    """One window."""
    match modality:
        case "eeg":
            return torch.randn(1, SHAPES.eeg_channels, 5 * e.preprocessing.eeg.hz)
        case "audio":
            return 0.1 * torch.randn(1, 80_000)
        case _:
            size = e.preprocessing.video.size
            return torch.randint(0, 256, (1, 5 * e.preprocessing.video.fps, size, size, 3), dtype=torch.uint8)


def time_module(module: nn.Module, forward: Any) -> tuple[list[float], list[float]]:
    """Of a prediction, and of forward and backward in training."""
    predict, train = [], []
    for _ in range(RUNS):
        with torch.no_grad():
            module.eval()
            began = time.perf_counter()
            forward()
            predict.append(1e3 * (time.perf_counter() - began))
        module.train()
        began = time.perf_counter()
        forward().sum().backward()
        train.append(1e3 * (time.perf_counter() - began))
    return predict, train


def count_gmac(module: nn.Module, forward: Any) -> float:
    module.train()  # in eval mode torch's own transformer layer is one operation, which is not counted
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2e9


def measure_row(name: str, module: nn.Module, forward: Any) -> str:
    parameters = sum(p.numel() for p in module.parameters())
    predict, train = time_module(module, forward)
    digits = 0 if min(predict) > 100 else 1
    cost = f"{count_gmac(module, forward):.3g} | {format_spread(predict, digits)} | {format_spread(train, digits)}"
    text = f"| {name} | {parameters:,} | {cost} |"
    print(text, flush=True)
    return text


def main() -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        f"`python -m benchmarks.models`, {datetime.date.today()}, one core of {describe_hardware()}. One window; "
        f"median (range) of {RUNS} runs.",
        "",
        "| model | parameters | GMAC | predict, ms | train, ms |",
        "|---|---|---|---|---|",
    ]
    present = torch.ones(1, dtype=torch.bool)
    for name, modality, changes in ENCODERS:
        e = override(Experiment(), changes | {"data.modalities": [modality]})
        model = Classifier(e, SHAPES)
        limit_training(model, e.train.encoders[modality])
        encoder, x = model.encoders[modality], make_input(e, modality)
        lines.append(measure_row(name, encoder, lambda encoder=encoder, x=x: encoder(x, present).tokens_BND))
        del encoder, model
    widths, counts = {"audio": 768, "eeg": 256, "video": 768}, {"audio": 50, "eeg": 8, "video": 25}
    parity = {"audio": 768, "eeg": 60, "video": 768}
    for kind in FUSIONS:
        wide = parity if kind == "single_token" else widths
        changes = {"fusion.kind": kind, "fusion.heads": 4, "model.eeg.kind": "eav_transformer"}
        e = override(Experiment(), changes if kind == "single_token" else {"fusion.kind": kind})
        times = {m: (torch.arange(n) + 0.5) * 5 / n for m, n in counts.items()}
        fusion = build_fusion(e, wide, times, SHAPES.n_outputs)
        encoded = {
            m: EncoderOutput(
                torch.randn(1, counts[m], wide[m]), torch.ones(1, counts[m], dtype=torch.bool), torch.randn(1, wide[m])
            )
            for m in MODALITIES
        }
        unimodal_logits = {m: torch.randn(1, SHAPES.n_outputs) for m in MODALITIES}
        present_BM = torch.ones(1, 3, dtype=torch.bool)
        lines.append(
            measure_row(
                f"fusion: {kind}",
                fusion,
                lambda f=fusion, x=encoded, a=unimodal_logits, p=present_BM: f(x, a, p).logits_BK,
            )
        )
    text = PAGE.read_text()
    table = "\n".join(["<!-- measured -->", *lines, "<!-- end -->"])
    PAGE.write_text(re.sub(r"<!-- measured -->.*<!-- end -->", lambda _: table, text, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
