"""A search whose candidates are trained whole, each by a group of workers of its own, goes on after a kill."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from eav_ray.config import load_experiment, parse_changes
from eav_ray.storage import Store
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.study import StudyClient
from tests.helpers.clusters import PATIENCE_S, end_process, find_workers
from tests.helpers.paths import REPOSITORY, TINY
from tests.helpers.reliability import CHAOS

pytestmark = pytest.mark.ray
# Candidates that are trained on both inner folds, and one that is left after the first.
WHOLE, LEFT = ([0, 1, 2, 3], 4) if CHAOS else ([0], 1)
N_WORKERS = 2 if CHAOS else 1  # of a group
CHANGES = [
    "search.mode=full",
    f"search.candidates={LEFT + 1}",
    f"search.ask_batch_size={2 if CHAOS else 1}",
    f"runtime.engine={'deepspeed' if CHAOS else 'torch'}",
    f"runtime.workers={N_WORKERS}",
    "search.prune=true",
    "train.mode=end_to_end",
]
CHANGES += ["data.modalities=[audio,eeg]", "model.audio.kind=mfcc", "model.eeg.kind=bandpower", "store.results=full"]

# `jobs/search.py` whose last candidate meets a bar that no score reaches.
PRUNED = f"""
import runpy, sys
from eav_ray.pipelines.search import candidate_searcher
candidate_searcher.compute_pruning_thresholds = (
    lambda rows, metric, before, search: {{1: 2.0}} if before == {LEFT} else {{}}
)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Search:
    words: list[str]
    place: Path
    running: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PRUNED, str(REPOSITORY / "jobs" / "search.py"), *self.words]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.place, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.running.append(process)
        return process

    def wait_for(self, candidates: int) -> pd.DataFrame:
        """Rows, once there are some of that many candidates."""
        for _ in range(10 * PATIENCE_S):
            for path in (self.place / "full" / "searches").glob("*/candidates.parquet"):
                rows = pd.read_parquet(path)
                if rows["candidate"].nunique() >= candidates:
                    return rows
            assert self.running[-1].poll() is None, self.running[-1].communicate()
            time.sleep(0.1)
        raise AssertionError(f"{candidates} candidates were not finished")


@pytest.fixture
def search(preprocessed: list[str], place: Path) -> Iterator[Search]:
    found = Search([*preprocessed, *CHANGES], place)
    yield found
    for process in found.running:
        if process.poll() is None:
            end_process(process)


def test_a_search_of_whole_trainings_survives_a_kill_and_a_stop(
    search: Search, place: Path, job_environment: dict[str, str], cluster: dict[str, str]
) -> None:
    """Killed with the Ray that it had started, told to end on the next, ended on a third, which was there."""
    first = search.start(job_environment)
    before = search.wait_for(1)
    end_process(first)
    second = search.start(job_environment)
    while len(find_workers(second)) < N_WORKERS:
        assert second.poll() is None, second.communicate()
        time.sleep(0.2)
    second.send_signal(signal.SIGTERM)
    _, reported = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 130 and "Traceback" not in reported, reported
    assert f"of {LEFT + 1} candidates finished)" in reported.splitlines()[-1]
    left = LEFT + 1 - search.wait_for(1)["candidate"].nunique()
    third = search.start(cluster)
    out, reported = third.communicate(timeout=PATIENCE_S)
    assert third.returncode == 0 and "Traceback" not in reported, reported
    assert f"{2 * left} joint trainings of the search; 1 joint training of the refit" in out

    (folder,) = (place / "full" / "searches").iterdir()
    rows = pd.read_parquet(folder / "candidates.parquet")
    assert rows.groupby("candidate")["fold"].apply(list).to_dict() == dict.fromkeys(WHOLE, [0, 1]) | {LEFT: [0]}
    assert rows.groupby("candidate")["state"].first().to_dict() == dict.fromkeys(WHOLE, "COMPLETE") | {LEFT: "PRUNED"}
    # What was finished before the kill was not trained again, and all that was suggested follows from the scores, as in
    # a search that nobody stopped.
    pd.testing.assert_frame_equal(rows[rows["candidate"].isin(before["candidate"])][before.columns], before)
    e = load_experiment(str(TINY), parse_changes(search.words[1:]))
    owner = StudyClient(e.search, folder.name, place / "replayed.log")
    changes, scores = rows.groupby("candidate")["changes"].first(), rows.groupby("candidate")[SELECTION_METRIC].mean()
    while (number := len(owner.completed())) < e.search.candidates:
        candidate = owner.ask()
        assert candidate is not None and candidate.number == number
        assert candidate.changes == json.loads(changes[number])
        owner.tell(number, scores[number], pruned=number == LEFT)

    # An early stop gives its workers back within half a minute.
    assert rows.loc[rows["candidate"] == LEFT, "released_s"].item() < 30
    # Only the refit of the best is kept.
    best = json.loads((folder / "best.json").read_text())
    assert best["candidate"] in WHOLE and best["value"] == pytest.approx(scores[WHOLE].max())
    # The first search may have been killed between the last file of a run and its folder.
    assert Store(place / "full").list_folders("runs") == [Path(best["checkpoint"]).parts[1]]
