"""Whether spectrograms are better made once, while preprocessing, or in training, from the waveform.

    EAV_RAY_REAL=... python -m benchmarks.log_mel

Training steps of the audio encoder on windows of real speech that are read from a memory-mapped file, once from
waveforms and once from stored spectrograms, in turn. The small encoder of the demo is the hard case: the larger the
encoder, the less its spectrogram matters.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common import Goal, finish, real_data, spread
from eav_ray.config import Data, Experiment, load
from eav_ray.data import audio, sets
from eav_ray.models.audio import AST, HZ

RUNS, STEPS, BATCH = 5, 8, 32
WINDOW_S = 5


def waves() -> np.ndarray:
    """(windows, samples) of 5 s, zero after the clip's end."""
    _, listing = sets.scan(Data(set="ravdess", root=str(real_data()), modalities=("audio",)))
    found = np.zeros((BATCH * STEPS, HZ * WINDOW_S), np.float32)
    for row, recording in zip(found, listing.recordings, strict=False):
        assert recording.audio is not None
        x_T = audio.read(recording.audio, HZ)[: found.shape[1]]
        row[: len(x_T)] = x_T
    return found


class Side:
    """An encoder with a linear head, and the file that it is trained from."""

    def __init__(self, encoder: AST, stored: np.ndarray, path: Path) -> None:
        stored.tofile(path)
        self.mapped = np.memmap(path, stored.dtype, "r", shape=stored.shape)
        self.encoder, self.head = encoder, nn.Linear(encoder.width, 5)
        self.optimizer = torch.optim.AdamW([*encoder.parameters(), *self.head.parameters()], lr=1e-4)

    def epoch(self) -> float:
        """Milliseconds a window."""
        began = time.perf_counter()
        for step in range(STEPS):
            x = torch.from_numpy(np.array(self.mapped[step * BATCH : (step + 1) * BATCH])).float()
            encoded = self.encoder(x, torch.ones(BATCH, dtype=torch.bool))
            loss = nn.functional.cross_entropy(self.head(encoded.pooled), torch.arange(BATCH) % 5)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return 1e3 * (time.perf_counter() - began) / (STEPS * BATCH)


def encoder_of(experiment: Experiment) -> AST:
    a = experiment.model.audio
    torch.manual_seed(0)
    sizes = {"width": a.width, "depth": a.depth, "heads": a.heads, "max_length": a.max_length, "stride": a.stride}
    return AST(window_s=WINDOW_S, dropout=0.0, **sizes)


def main() -> int:
    torch.set_num_threads(1)  # as a training worker on one core
    x_BT = waves()
    experiment = load("jobs/experiments/demo.yaml")
    with tempfile.TemporaryDirectory() as folder:
        from_wave = Side(encoder_of(experiment), x_BT, Path(folder) / "wave")
        bank = from_wave.encoder.bank
        began = time.perf_counter()
        with torch.no_grad():
            features = torch.cat([bank(torch.from_numpy(x)) for x in np.array_split(x_BT, STEPS)]).numpy()
        once_ms = 1e3 * (time.perf_counter() - began) / len(x_BT)
        stored = Side(encoder_of(experiment), features, Path(folder) / "mel")
        stored.encoder.bank = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        sides = {"wave": from_wave, "stored": stored}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side.epoch()  # warm
        for k in range(RUNS):
            for name in sides if k % 2 == 0 else reversed(sides):
                times[name].append(sides[name].epoch())
    t = {name: np.array(values) for name, values in times.items()}
    sizes = {
        "waveform, float32": x_BT[0].nbytes,
        "waveform, int16": x_BT[0].nbytes // 2,
        "spectrogram": features[0].nbytes,
    }
    lines = [
        f"{len(x_BT)} windows of {WINDOW_S} s of RAVDESS speech, the demo's AST (width {experiment.model.audio.width}, "
        f"{experiment.model.audio.depth} layers), batches of {BATCH}, one thread. Median (range) of {RUNS} epochs.",
        "",
        "| training from | ms a window |",
        "|---|---|",
        f"| waveforms | {spread(t['wave'], 1)} |",
        f"| stored spectrograms | {spread(t['stored'], 1)} |",
        "",
        f"- made once, a spectrogram takes {once_ms:.1f} ms of a core",
        f"- bytes a window: {', '.join(f'{name} {n:,}' for name, n in sizes.items())}",
        f"- from waveforms / from stored: {spread(t['wave'] / t['stored'])}",
        "",
        "From waveforms, augmentation can act on the sound, prediction from raw files takes the same path, and another",
        "kind of features needs no other shards.",
    ]
    goals = [
        Goal(
            "training from waveforms over from spectrograms", float(np.median(t["wave"] / t["stored"])), 1.25, "", False
        )
    ]
    return finish("log_mel", "Spectrograms: once, or in training", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
