"""The filter bank of the audio encoder beside the library's, on the same real clips: deviation and time.

    EAV_RAY_REAL=... python -m benchmarks.filter_bank

Windows of 5 s of RAVDESS speech, both sides in one process with one thread, in turn. `ASTFeatureExtractor` takes
clips one by one inside, whether it is given a list or not; it is given the list, which is faster.
"""

import sys
import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from transformers import ASTFeatureExtractor

from benchmarks.common import Goal, finish_benchmark, format_spread
from benchmarks.log_mel import read_waveforms
from eav_ray.models.encoders.ast import AUDIOSET_SD, SAMPLE_RATE_HZ, FilterBank

CLIPS, RUNS = 64, 15


def main() -> int:
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's
    x_BT = read_waveforms(CLIPS)
    clips, batch = list(x_BT), torch.from_numpy(x_BT)
    lines = [
        f"{CLIPS} windows of 5 s, one thread. Median (range) of {RUNS} runs, milliseconds a window; deviation in "
        "log-mel units.",
        "",
        "| frames | ASTFeatureExtractor | ours | ratio | largest deviation | mean deviation |",
        "|---|---|---|---|---|---|",
    ]
    goals = []
    for max_length in (512, 1024):
        library, bank = ASTFeatureExtractor(max_length=max_length), FilterBank(max_length)
        made: dict[str, np.ndarray] = {}

        def run_library(library: ASTFeatureExtractor = library) -> np.ndarray:
            return library(clips, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_values"]

        def run_filter_bank(bank: FilterBank = bank) -> np.ndarray:
            return bank(batch).numpy()

        sides = {"theirs": run_library, "ours": run_filter_bank}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for k in range(-1, RUNS):  # the first is not counted
            for name in sides if k % 2 == 0 else reversed(sides):
                began = time.perf_counter()
                made[name] = sides[name]()
                milliseconds = 1e3 * (time.perf_counter() - began) / CLIPS
                times[name] += [milliseconds] if k >= 0 else []
        ratio = np.array(times["theirs"]) / np.array(times["ours"])
        difference = np.abs(made["ours"] - made["theirs"]) * 2 * AUDIOSET_SD
        lines.append(
            f"| {max_length} | {format_spread(times['theirs'])} | {format_spread(times['ours'])} | "
            f"{format_spread(ratio)} | {difference.max():.1e} | {difference.mean():.1e} |"
        )
        goals += [
            Goal(f"extractor's time over ours, {max_length} frames", float(np.median(ratio)), 1),
            Goal(f"largest deviation, {max_length} frames", float(difference.max()), 1e-3, "", False),
            Goal(f"mean deviation, {max_length} frames", float(difference.mean()), 2e-5, "", False),
        ]
    return finish_benchmark("filter_bank", "The filter bank beside ASTFeatureExtractor", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
