"""Whether spectrograms are better made once, while preprocessing, or in training, from the waveform.

    EAV_RAY_REAL=... python -m benchmarks.log_mel

Training steps of the audio encoder on windows of real speech that are read from a memory-mapped file, once from
waveforms and once from stored spectrograms, in turn: of the published size, and of the demo's, which is the hard case,
since the spectrogram costs the same whatever the encoder.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common import Goal, find_real_data, finish_benchmark, format_spread
from eav_ray.config import DataConfig, Experiment, load_experiment
from eav_ray.data.datasets import registry
from eav_ray.data.io import audio
from eav_ray.models.encoders.ast import AST, SAMPLE_RATE_HZ

RUNS = 5
SIZES = {"demo": ("eav_ray/experiments/demo.yaml", 32, 8), "published": ("eav_ray/experiments/fusion.yaml", 4, 1)}
WINDOW_S = 5


def read_waveforms(count: int) -> np.ndarray:
    """(count, samples) of 5 s, zero after the clip's end."""
    _, listing = registry.scan_dataset(DataConfig(dataset="ravdess", root=str(find_real_data()), modalities=("audio",)))
    found = np.zeros((count, SAMPLE_RATE_HZ * WINDOW_S), np.float32)
    for row, recording in zip(found, listing.recordings, strict=False):
        assert recording.audio is not None
        x_T = audio.read_audio(recording.audio, SAMPLE_RATE_HZ)[: found.shape[1]]
        row[: len(x_T)] = x_T
    return found


class EncoderTraining:
    """An encoder with a linear head, and the file that it is trained from, `batch` windows a step."""

    def __init__(self, encoder: AST, stored: np.ndarray, path: Path, batch: int) -> None:
        self.batch = batch
        stored.tofile(path)
        self.mapped = np.memmap(path, stored.dtype, "r", shape=stored.shape)
        self.encoder, self.head = encoder, nn.Linear(encoder.width, 5)
        self.optimizer = torch.optim.AdamW([*encoder.parameters(), *self.head.parameters()], lr=1e-4)

    def train_epoch(self) -> float:
        """Milliseconds a window."""
        began = time.perf_counter()
        for start in range(0, len(self.mapped), self.batch):
            x = torch.from_numpy(np.array(self.mapped[start : start + self.batch])).float()
            present = torch.ones(len(x), dtype=torch.bool)
            if x.ndim == 2:  # waveforms
                encoded = self.encoder(x, present)
            else:  # spectrograms; which of their frames are silent changes no time
                encoded = self.encoder.encode_features(x, torch.ones(x.shape[:2], dtype=torch.bool), present)
            loss = nn.functional.cross_entropy(self.head(encoded.pooled_BD), torch.arange(len(x)) % 5)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return 1e3 * (time.perf_counter() - began) / len(self.mapped)


def make_encoder(experiment: Experiment) -> AST:
    a = experiment.model["audio"]
    torch.manual_seed(0)
    sizes = {"width": a.width, "depth": a.depth, "heads": a.heads, "max_length": a.max_length, "stride": a.stride}
    return AST(window_s=WINDOW_S, dropout=0.0, silence_db=a.silence_db, **sizes)


def measure_training(
    experiment: Experiment, batch: int, steps: int
) -> tuple[dict[str, np.ndarray], float, dict[str, int]]:
    """Milliseconds a window of each side, run by run; of making a spectrogram; and bytes of each form."""
    x_BT = read_waveforms(batch * steps)
    times: dict[str, list[float]] = {"wave": [], "stored": []}
    with tempfile.TemporaryDirectory() as folder:
        from_wave = EncoderTraining(make_encoder(experiment), x_BT, Path(folder) / "wave", batch)
        began = time.perf_counter()
        with torch.no_grad():
            features = from_wave.encoder.compute_features(torch.from_numpy(x_BT))[0].numpy()
        once_ms = 1e3 * (time.perf_counter() - began) / len(x_BT)
        stored = EncoderTraining(make_encoder(experiment), features, Path(folder) / "mel", batch)
        sides = {"wave": from_wave, "stored": stored}
        for k in range(-1, RUNS):  # the first is not counted
            for name in sides if k % 2 == 0 else reversed(sides):
                milliseconds = sides[name].train_epoch()
                times[name] += [milliseconds] if k >= 0 else []
    return {k: np.array(v) for k, v in times.items()}, once_ms, {"wave": x_BT[0].nbytes, "mel": features[0].nbytes}


def main() -> int:
    torch.set_num_threads(1)  # as a training worker on one core
    lines = [
        f"Windows of {WINDOW_S} s of RAVDESS speech, one thread. Median (range) of {RUNS} runs, milliseconds a window.",
        "",
        "| encoder | from waveforms | from stored spectrograms | ratio | making the spectrogram alone |",
        "|---|---|---|---|---|",
    ]
    goals: list[Goal] = []
    for name, (path, batch, steps) in SIZES.items():
        experiment = load_experiment(path)
        a = experiment.model["audio"]
        t, once_ms, sizes = measure_training(experiment, batch, steps)
        ratio = t["wave"] / t["stored"]
        lines.append(
            f"| {name}: width {a.width}, {a.depth} layers | {format_spread(t['wave'], 1)} | "
            f"{format_spread(t['stored'], 1)} | {format_spread(ratio)} | {once_ms:.1f} |"
        )
        threshold = 1.02 if name == "published" else 1.25
        goals.append(
            Goal(f"training from waveforms over from spectrograms, {name}", np.median(ratio), threshold, "", False)
        )
    lines += ["", f"A waveform is {sizes['wave']:,} bytes a window, a spectrogram {sizes['mel']:,}."]
    return finish_benchmark("log_mel", "Spectrograms: once, or in training", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
