"""How video frames are best stored: bytes, time and accuracy of JPEG and of raw frames.

    EAV_RAY_REAL=... python -m benchmarks.frame_storage [FOLDER]

Bytes, time and fidelity are measured on real face video at 224 x 224; accuracy on the demo's synthetic people at 64 x
64, the only faces here that have emotions: a video encoder is trained and tested on people never seen, once on each
form of the same frames. FOLDER keeps the synthetic people from one run to the next.
"""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Goal, find_real_data, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import VideoPreprocessing
from eav_ray.data.io import jpeg, video
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.evaluation.correctness import mark_correct_recordings

RUNS = 5
SIZE, WINDOW = 224, 25
DEMO = "eav_ray/experiments/demo.yaml"


def read_real_windows() -> list[np.ndarray]:
    """(25, 224, 224, 3) each."""
    found = []
    for path in sorted((find_real_data() / "video").glob("*.m*")):
        x_FHWC = video.read_video(path, 5, SIZE).frames
        found += [x_FHWC[i : i + WINDOW] for i in range(0, len(x_FHWC) - WINDOW + 1, WINDOW)]
    return found


def measure_parquet_bytes(stored: list[list[bytes]] | np.ndarray) -> int:
    """As a column of a shard."""
    column = pa.array([w.tobytes() for w in stored]) if isinstance(stored, np.ndarray) else pa.array(stored)
    sink = io.BytesIO()
    pq.write_table(pa.table({"video": column}), sink, compression="zstd", compression_level=1)
    return len(sink.getvalue())


def measure_jpeg(windows: list[np.ndarray], quality: int) -> dict[str, float]:
    preprocessing = VideoPreprocessing(quality=quality)
    began = time.process_time()
    stored: list[list[bytes]] = [list(jpeg.encode_frames(w, preprocessing)) for w in windows]
    encode_s = time.process_time() - began
    cpu, wall = time.process_time(), time.perf_counter()
    decoded = jpeg.decode_frames(stored, windows[0].shape)
    decode_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    n = len(windows) * WINDOW
    error = np.square(np.stack(windows).astype(np.float32) - decoded).mean()
    return {
        "bytes": measure_parquet_bytes(stored) / n,
        "encode": 1e3 * encode_s / n,
        "decode": 1e3 * decode_s / n,
        "wall": 1e3 * wall_s / n,
        "psnr": float(10 * np.log10(255**2 / error)),
    }


def measure_raw(windows: list[np.ndarray], folder: Path) -> dict[str, float]:
    """Raw frames as the cache holds them: uncompressed and mapped, copied when they are used."""
    stacked = np.stack(windows)
    path = folder / "raw.bin"
    stacked.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=stacked.shape)
    cpu, wall = time.process_time(), time.perf_counter()
    np.array(mapped)
    n = len(windows) * WINDOW
    costs = {"decode": 1e3 * (time.process_time() - cpu) / n, "wall": 1e3 * (time.perf_counter() - wall) / n}
    return costs | {"bytes": measure_parquet_bytes(stacked) / n, "encode": 0.0, "psnr": float("inf")}


def score_codec(folder: Path, codec: str) -> pd.DataFrame:
    """Whether the video encoder is right: one row a recording of the people held out."""
    folder_of_codec = folder / codec
    words = [DEMO, f"data.root={folder / 'synthetic'}", "data.modalities=[video]", f"preprocessing.video.codec={codec}"]
    words += [f"store.{k}={folder_of_codec / k}" for k in ("shards", "results", "cache")]
    run_program("jobs/preprocess.py", *words)
    checkpoint = run_program("jobs/train.py", *words).rsplit("checkpoint: ", 1)[1].split()[0]
    run_program("jobs/evaluate.py", *words, "--checkpoint", checkpoint)
    (predictions_file,) = (folder_of_codec / "results" / "evaluations").glob("*.parquet")
    return mark_correct_recordings(pd.read_parquet(predictions_file), ["video"]).set_index(["subject", "recording"])


def run_program(*words: str) -> str:
    process = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"error: {' '.join(words)} ended with {process.returncode}: {process.stderr[-1000:]}")
    return process.stdout


def main() -> int:
    folder, _ = parse_arguments(__doc__)
    folder.mkdir(parents=True, exist_ok=True)
    windows = read_real_windows()
    table: dict[str, list[dict[str, float]]] = {"raw": [], "JPEG 95": [], "JPEG 90": []}
    for _ in range(RUNS):
        table["raw"].append(measure_raw(windows, folder))
        table["JPEG 95"].append(measure_jpeg(windows, 95))
        table["JPEG 90"].append(measure_jpeg(windows, 90))
    lines = [
        f"{len(windows)} windows of 25 frames of real face video at {SIZE} x {SIZE}, no colour subsampling. Median "
        f"(range) of {RUNS} runs; milliseconds a frame of one core, and by the clock with {jpeg.N_DECODE_THREADS} "
        "threads.",
        "",
        "| form | bytes a frame in a shard | encode, ms | read, ms of a core | read, ms by the clock | PSNR, dB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in table.items():
        one = {k: [r[k] for r in runs] for k in runs[0]}
        psnr = "exact" if np.isinf(one["psnr"][0]) else f"{one['psnr'][0]:.1f}"
        lines.append(
            f"| {name} | {one['bytes'][0]:,.0f} | {format_spread(one['encode'])} | {format_spread(one['decode'], 3)} | "
            f"{format_spread(one['wall'], 3)} | {psnr} |"
        )
    generate_dataset(folder / "synthetic", SyntheticSpec(n_subjects=9, per_class=6), workers=2)
    correct = pd.concat({c: score_codec(folder, c)["video"] for c in ("raw", "jpeg")}, axis=1)
    discordant = {c: int((correct[c] & ~correct[o]).sum()) for c, o in (("raw", "jpeg"), ("jpeg", "raw"))}
    lines += [
        "",
        f"Accuracy on {len(correct)} recordings of {correct.index.get_level_values(0).nunique()} synthetic people "
        f"never seen: raw {correct['raw'].mean():.1%}, JPEG 95 {correct['jpeg'].mean():.1%}; {discordant['raw']} "
        f"recordings right by raw alone, {discordant['jpeg']} by JPEG alone. One seed.",
    ]
    ratio = table["raw"][0]["bytes"] / table["JPEG 95"][0]["bytes"]
    goals = [
        Goal("bytes of raw frames in a shard over JPEG 95", ratio, 3),
        Goal(
            "JPEG 95: read, ms a frame of one core",
            float(np.median([r["decode"] for r in table["JPEG 95"]])),
            1,
            " ms",
            False,
        ),
        Goal(
            "accuracy of JPEG 95 less that of raw",
            100 * float(correct["jpeg"].mean() - correct["raw"].mean()),
            -3,
            " points",
        ),
    ]
    return finish_benchmark("frame_storage", "How video frames are stored", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
