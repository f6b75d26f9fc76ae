"""Which candidates are handed out when, to which trial, and what is said while nothing has room for them."""

import json
import math
import threading
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.search import Searcher

from eav_ray.config import Experiment, RuntimeConfig, SearchConfig, SearchDimension, override
from eav_ray.config.digests import HashedParts
from eav_ray.config.paths import resolve_experiment_paths
from eav_ray.data.splits import Split
from eav_ray.distributed import cluster
from eav_ray.errors import ConfigError
from eav_ray.pipelines.search import candidate_runs, search_plan
from eav_ray.pipelines.search.candidate_runs import CandidateRuns, mark_run, prune_candidate_runs, prune_runs
from eav_ray.pipelines.search.candidate_searcher import CandidateSearcher, WaitNotifier
from eav_ray.pipelines.search.candidate_summary import summarize_candidate
from eav_ray.pipelines.search.search_plan import InnerCV, plan_candidate_runs
from eav_ray.pipelines.search.search_store import SearchStore
from eav_ray.pipelines.search.trial_runner import TrainingSearcher
from eav_ray.storage import Store
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.search_space import check_search_space
from eav_ray.tuning.study import Candidate, StudyClient
from tests.helpers.datasets import make_dataset

# Optuna calls its journal experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@dataclass
class Trial:
    status: str

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


def test_only_trials_that_do_not_start_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("eav_ray.pipelines.search.candidate_searcher.time.monotonic", lambda: now[0])
    reported: list[tuple[float, bool]] = []
    waiting = WaitNotifier(lambda waits: reported.append((now[0], waits)))

    def step(at: float, *states: str) -> None:
        now[0] = at
        trials: Any = [Trial(state) for state in states]
        waiting.on_step_begin(0, trials)

    step(15, "PENDING", "PENDING")
    step(25, "PENDING", "PENDING")
    step(30, "RUNNING", "PENDING")
    step(45, "PENDING", "TERMINATED")
    step(51, "PENDING", "TERMINATED")
    step(80, "TERMINATED", "TERMINATED")
    step(99, "PENDING", "ERROR")
    assert reported == [(25, True), (30, False), (51, True), (80, False)]


def test_what_is_waited_for_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert (
        cluster.describe_worker_needs(RuntimeConfig(gpus_per_worker=0.5))
        == "a node with 1 CPU and 0.5 GPU free (1 node is there)"
    )


def test_a_database_in_a_file_lies_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitted job runs in a copy of that folder, which goes with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    e = override(Experiment(), {"search.storage": "sqlite:///search.db"})
    assert resolve_experiment_paths(e).search.storage == f"sqlite:///{tmp_path}/search.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    shared = {"data.root": "/d", "store.shards": "/d", "store.results": "/d", "store.cache": "/d"}
    with pytest.raises(ConfigError, match="search.storage is search.db, a relative path, but a submitted job runs in"):
        resolve_experiment_paths(override(e, shared))


class Trained:
    """A search of whole trainings, without Ray: what would be handed out, and to which trial."""

    def __init__(self, folder: Path, changes: list[dict[str, Any]], needs: dict[str, str], **search: Any) -> None:
        values = sorted({c["optim.lr"] for c in changes})
        space = {"optim.lr": SearchDimension(choice=tuple(values))}
        self.owner = StudyClient(SearchConfig(candidates=len(changes), space=space, **search), "s", folder / "journal")
        self._left = [Candidate(n, c) for n, c in enumerate(changes)]
        self._reported: set[int] = set()
        self.owner.ask = self._ask
        self.owner.tell = lambda number, score, pruned=False, cost=0.0: self._reported.add(number)
        self.owner.completed = lambda: sorted(self._reported)
        self.kept: list[dict[str, Any]] = []
        self.forgotten: list[int] = []
        store = SimpleNamespace(
            write_candidates=lambda own, rows: self.kept.extend(rows[len(self.kept) :]),
            upload_journal=lambda study: None,
            check_lock=lambda: None,
        )
        self.leases = CandidateSearcher(self.owner, cast(SearchStore, store), [])
        self.leases.list_needed_keys = lambda candidate: frozenset(
            [needs.get(str(candidate.changes["optim.lr"]), ""), str(candidate.changes["optim.lr"])]
        )
        self.leases.on_completed = lambda candidate, trained_folds: self.forgotten.append(candidate.number)

    def _ask(self) -> Candidate | None:
        if not self._left:
            raise StopIteration
        return self._left.pop(0)

    def number(self, trial: str) -> int | str | None:
        found = self.leases.suggest(trial)
        return found["candidates"][0][0] if isinstance(found, dict) else found

    def finish(self, trial: str, number: int, score: float = 0.5) -> None:
        folds = [{"fold": 0, SELECTION_METRIC: score}, {"fold": 1, SELECTION_METRIC: score}]
        reported = [summarize_candidate(number, folds, 2, {}, failed="" if math.isfinite(score) else "no memory")]
        self.leases.on_trial_complete(trial, {"summaries": json.dumps(reported)})


def test_what_one_candidate_trains_no_other_trains_beside_it(tmp_path: Path) -> None:
    """Candidates 0 and 1 share an encoder that is not trained yet; 2 is by itself; 3 is equal to 0."""
    changes = [{"optim.lr": lr} for lr in (0.1, 0.2, 0.3, 0.1)]
    search = Trained(tmp_path, changes, {"0.1": "shared", "0.2": "shared", "0.3": "own"})
    assert search.number("a") == 0
    assert search.number("b") == 2  # 1 waits
    assert search.number("c") is None  # so does 3
    search.finish("b", 2)
    assert search.number("c") is None
    search.finish("a", 0)
    assert search.number("c") == 1
    assert search.number("d") is None
    search.finish("c", 1)
    found = search.leases.suggest("d")
    assert found["candidates"] == [(3, {"optim.lr": 0.1})]
    assert [row["fold"] for row in found["known_rows"]] == [0, 1]  # of candidate 0, which was the same
    search.finish("d", 3)
    assert search.number("e") == Searcher.FINISHED
    assert search.forgotten == [2, 0, 1, 3] and len(search.kept) == 8


def test_a_candidate_without_a_score_says_why_and_one_that_left_stays_open(tmp_path: Path) -> None:
    search = Trained(tmp_path, [{"optim.lr": lr} for lr in (0.1, 0.2)], {"0.1": "a", "0.2": "b"})
    assert search.number("a") == 0 and search.number("b") == 1
    search.finish("a", 0, math.nan)
    assert search.leases.failed == {0: "no memory"} and search.leases.crashed_candidate is None
    search.leases.on_trial_complete("b", {SELECTION_METRIC: math.nan})
    assert search.leases.crashed_candidate == 1 and search.forgotten == [0]
    assert {row["state"] for row in search.kept} == {"FAIL"}


def test_the_driver_plans_a_candidate_of_42_folds_once_and_asks_the_store_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what Tune calls; to delete models is for another thread."""
    plan = planned(tmp_path, **FULL, **{"search.candidates": 6, "search.space.model.eeg.depth": {"choice": [1, 2]}})
    ids = [f"subject{k}/{number:03d}" for k in range(42) for number in range(100)]
    splits = [Split("loso", tuple(i for i in ids if not i.startswith(f"subject{k}/")), (), ()) for k in range(42)]
    plan = replace(plan, inner_cv=InnerCV(splits, "data", tuple(ids)))
    study = StudyClient(plan.experiment.search, "s", tmp_path / "journal")
    searcher = TrainingSearcher(plan, study, [], lambda candidate: math.nan)
    main, asked, keys, cpu_s = threading.current_thread(), [], [], []
    for name in ("list_files", "exists", "read"):
        plain = getattr(Store, name)

        def count(store: Store, *given: Any, plain: Any = plain) -> Any:
            if threading.current_thread() is main:
                asked.append(given)
            return plain(store, *given)

        monkeypatch.setattr(Store, name, count)
    plain_digest = HashedParts.digest
    monkeypatch.setattr(HashedParts, "digest", lambda *parts: (keys.append(parts), plain_digest(*parts))[1])
    with closing(searcher):
        for number in range(6):
            began = time.thread_time()
            found = searcher.suggest(f"trial{number}")
            assert [n for n, _ in found["candidates"]] == [number]
            folds = [{"fold": fold, SELECTION_METRIC: 0.5} for fold in range(42)]
            reported = [summarize_candidate(number, folds, 42, {})]
            searcher.on_trial_complete(f"trial{number}", {"summaries": json.dumps(reported)})
            cpu_s.append(time.thread_time() - began)
    assert len(keys) == 6 * 42 * 3 and asked == []
    assert sorted(cpu_s)[3] < 0.5  # about 0.04; 1 when keys were computed whenever they were asked for


def test_what_is_finished_before_a_driver_begins_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, **FULL, **{"search.space.model.eeg.depth": {"choice": [1, 2]}})
    candidate = Candidate(0, {"model.eeg.depth": 1})
    folds = plan_candidate_runs(override(plan.experiment, candidate.changes), plan.inner_cv)
    done = folds[0][0].key
    Store(tmp_path).write(f"runs/{done}/a0000/model", b"weights")
    asked: list[str] = []
    monkeypatch.setattr(
        candidate_runs, "is_run_finished", lambda run, results: (asked.append(run.key), run.key == done)[1]
    )
    runs = CandidateRuns(plan)
    every = {run.key for fold in folds for run in fold}
    assert runs.list_missing_keys(candidate) == every - {done} == runs.list_missing_keys(candidate)
    assert asked == [done]
    assert [run.key for run in runs.finish(candidate, [1])] == [fold[-1].key for fold in folds]
    other = Candidate(1, {"model.eeg.depth": 1})
    assert runs.list_missing_keys(other) == every - {done, *(run.key for run in folds[1][:-1])}


SPLIT = ("subject_kfold", ("p0/1", "p1/1"), ("p2/1",))


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"train.mode": "end_to_end"}, ["joint"]),
        ({"train.mode": "staged_then_joint"}, ["encoder"] * 3 + ["fusion", "joint"]),
        ({}, ["encoder"] * 3 + ["fusion"]),
        ({"data.modalities": ["eeg"]}, ["encoder"]),
    ],
)
def test_a_whole_candidate_trains_what_the_experiment_trains(changes: dict[str, Any], kinds: list[str]) -> None:
    question = InnerCV([Split(*SPLIT), Split(*SPLIT)], "data", ("p0/1", "p1/1", "p2/1"))
    e = override(Experiment(), {"search.mode": "full"} | changes)
    folds = plan_candidate_runs(e, question)
    assert [[run.kind for run in fold] for fold in folds] == [kinds, kinds]
    assert folds[0][-1].split.validation == ("p2/1",)


def test_only_whole_candidates_change_encoders() -> None:
    space = {"search.space.train.encoders.eeg.lr": {"choice": [1e-4, 1e-3]}}
    with pytest.raises(ConfigError, match=r"only keys under fusion. and optim. can be searched; with search.mode=full"):
        override(Experiment(), space)
    e = override(Experiment(), space | {"search.mode": "full", "search.space.model.eeg.depth": {"low": 1, "high": 3}})
    check_search_space(e)
    with pytest.raises(ConfigError, match="fusion., optim., model. and train. can be searched$"):
        override(e, {"search.space.data.seed": {"choice": [1, 2]}})


def test_a_candidate_ends_where_it_is_below_the_bar_or_at_its_last_fold() -> None:
    one, two = {"fold": 0, SELECTION_METRIC: 0.5}, {"fold": 1, SELECTION_METRIC: 0.7}
    left = {"fold": 1, SELECTION_METRIC: 0.1, "epochs_share": 0.25}
    bars = {0.25: 0.2, 1.0: 0.4, 1.25: 0.35, 2.0: 0.9}
    assert summarize_candidate(0, [one], 2, bars) == {}
    assert summarize_candidate(0, [one, two], 2, bars) | {
        "pruned": False,
        SELECTION_METRIC: pytest.approx(0.6),
    } == summarize_candidate(0, [two, one], 2, bars)
    ended = summarize_candidate(0, [one, left], 2, bars)  # a mean of 0.3 after a quarter of the second fold
    assert ended["pruned"] and ended[SELECTION_METRIC] == pytest.approx(0.3)
    assert summarize_candidate(0, [{"fold": 0, SELECTION_METRIC: 0.39}], 2, bars)["pruned"]
    assert not summarize_candidate(0, [{"fold": 0, SELECTION_METRIC: math.nan, "epochs_share": 0.25}], 2, {})["pruned"]


def planned(folder: Path, **changes: Any) -> search_plan.SearchPlan:
    """Of a search on the noise of three people with EEG and audio, of whom only ids are read."""
    e = override(
        Experiment(),
        {"data.modalities": ["audio", "eeg"], "split.n_folds": 4, "split.n_inner_folds": 3}
        | {"store.results": str(folder)}
        | changes,
    )
    return search_plan.plan_search(e, make_dataset(e))


FULL = {"search.mode": "full"}


def test_a_study_is_of_all_that_its_candidates_train(tmp_path: Path) -> None:
    staged = planned(tmp_path, **FULL)
    joint = planned(tmp_path, **FULL, **{"train.mode": "staged_then_joint"})
    other = planned(tmp_path, **FULL, **{"train.mode": "staged_then_joint", "train.joint.lr": 1e-3})
    assert len({staged.study_name, joint.study_name, other.study_name, planned(tmp_path).study_name}) == 4
    assert len(staged.inner_encoder_runs) == 6 and len(joint.inner_encoder_runs) == 6
    own = {"search.space.model.eeg.depth": {"choice": [1, 2]}}
    assert not planned(tmp_path, **FULL, **own).encoder_runs
    assert not planned(tmp_path, **FULL, **{"train.mode": "end_to_end"}).encoder_runs


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data.modalities": ["eeg"]}, "fusion.heads"),
        ({"train.mode": "end_to_end", "search.space.train.encoders.eeg.lr": {"low": 1e-5, "high": 1e-3}}, "train.enc"),
    ],
)
def test_a_key_that_changes_nothing_is_refused(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"search.space.{key}.* changes nothing that train.mode="):
        planned(tmp_path, **FULL, **changes)


def test_what_a_search_began_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    plan, results = planned(tmp_path, **FULL, **{"search.space.model.eeg.depth": {"choice": [1, 2]}}), Store(tmp_path)
    candidate = Candidate(0, {"model.eeg.depth": 1})
    folds = plan_candidate_runs(override(plan.experiment, candidate.changes), plan.inner_cv)
    assert [[run.kind for run in fold] for fold in folds] == [["encoder", "encoder", "fusion"]] * 3
    for fold, runs in enumerate(folds):
        for run in runs:
            mark_run(results, run.key, "another" if fold == 1 else plan.study_name)
            results.write(f"runs/{run.key}/a0000/model", b"weights")

    def left() -> list[list[bool]]:
        return [[bool(results.list_files(f"runs/{run.key}")) for run in runs] for runs in folds]

    prune_runs(plan, [runs[-1] for runs in folds])
    assert left() == [[True, True, False], [True, True, True], [True, True, False]]
    with results.lock(f"runs/{folds[0][0].key}/lock"):  # another search is at it
        prune_candidate_runs(plan, [candidate])
    assert left() == [[True, False, False], [True, True, True], [False, False, False]]
    # What two searches train is left to the last of them; what another job began, to that.
    (shared, _, _), other = folds[1], replace(plan, study_name="another")
    mark_run(results, shared.key, plan.study_name)
    prune_runs(plan, [shared])
    assert left()[1][0]
    prune_runs(other, [shared])
    assert not left()[1][0]
    results.write(f"runs/{shared.key}/a0000/model", b"of a job")
    mark_run(results, shared.key, plan.study_name)
    prune_runs(plan, [shared])
    assert left()[1][0]
