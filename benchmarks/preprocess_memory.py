"""Memory of preprocessing: does it grow with the number of people?

    python -m benchmarks.preprocess_memory [FOLDER]

`jobs/preprocess.py` over 2 and over 8 generated people of 100 speaking recordings of 20 s (EEG files of EAV's size,
small frames), three times each in turn. The figure is the peak, over the whole tree of processes, of the proportional
set size (which counts a page of the object store once), less that of an idle Ray. FOLDER keeps the people from run to
run.
"""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset

RUNS = 3
IDLE = """
import time
from eav_ray.config import RuntimeConfig
from eav_ray.distributed import cluster
with cluster.connect_to_ray(RuntimeConfig()):
    import ray
    ray.get([ray.remote(lambda: time.sleep(1)).remote() for _ in range(2)])
    time.sleep(5)
"""


def measure_peak_gib(command: list[str]) -> float:
    """Peak of the proportional set size of a command and all below it, GiB."""
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    highest = 0
    while process.poll() is None:
        total = 0
        for p in (process, *process.children(recursive=True)):
            try:
                total += p.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        highest = max(highest, total)
        time.sleep(0.3)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    return highest / 2**30


def main() -> int:
    folder, _ = parse_arguments(__doc__)
    spec = SyntheticSpec(n_subjects=8, per_class=20, listening=True, fps=10)
    generate_dataset(folder / "EAV", spec, workers=os.cpu_count() or 1)
    idle = [measure_peak_gib([sys.executable, "-c", IDLE]) for _ in range(RUNS)]
    peaks_by_subjects: dict[int, list[float]] = {2: [], 8: []}
    for k in range(RUNS):
        for count in (2, 8) if k % 2 == 0 else (8, 2):
            shards = folder / "shards"
            shutil.rmtree(shards, ignore_errors=True)
            names = ",".join(f"subject{i + 1}" for i in range(count))
            words = [f"data.root={folder / 'EAV'}", f"data.subjects=[{names}]", f"store.shards={shards}"]
            job = ["jobs/preprocess.py", "eav_ray/experiments/fusion.yaml", *words]
            peaks_by_subjects[count].append(measure_peak_gib([sys.executable, *job]))
            print(f"run {k + 1}, {count} people: {peaks_by_subjects[count][-1]:.2f} GiB", flush=True)
    peak_of_2, peak_of_8 = (np.array(peaks_by_subjects[n]) - np.median(idle) for n in (2, 8))
    lines = [
        f"Peak of all processes, GiB, median (range) of {RUNS} runs; an idle Ray: {format_spread(idle)}.",
        "",
        "| people | peak | less an idle Ray |",
        "|---|---|---|",
        f"| 2 | {format_spread(peaks_by_subjects[2])} | {format_spread(peak_of_2)} |",
        f"| 8 | {format_spread(peaks_by_subjects[8])} | {format_spread(peak_of_8)} |",
    ]
    ratio = float(np.median(peak_of_8) / np.median(peak_of_2))
    goals = [Goal("memory over 8 people of that over 2", ratio, 1.2, at_least=False)]
    return finish_benchmark("preprocess_memory", "Memory of preprocessing", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
