"""What Ray Tune sees of a study: trials to start, and where their scores go. Runs in the search's driver.

A trial trains one or more candidates. The driver is the only writer of the study and of its rows.
"""

import json
import math
import time
from collections.abc import Callable, Collection
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from eav_ray.distributed.worker_groups import WAIT_NOTICE_S
from eav_ray.errors import ConfigError
from eav_ray.pipelines.search.search_store import Row, SearchStore
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.pruning import compute_pruning_thresholds
from eav_ray.tuning.study import Candidate, StudyClient


class CandidateSearcher(Searcher):
    """Hands candidates out and tells the study their scores.

    Args:
        store: Keeps the rows and the journal.
        rows: Of earlier runs of this search; one per candidate and fold.
        max_candidates: Of one trial.
        compute_cost: Of a candidate, where the search has such an objective.
    """

    def __init__(
        self,
        study: StudyClient,
        store: SearchStore,
        rows: list[Row],
        max_candidates: int = 1,
        compute_cost: Callable[[Candidate], float] = lambda candidate: math.nan,
    ) -> None:
        super().__init__(metric=SELECTION_METRIC, mode="max")
        self._study, self._store, self._rows = study, store, rows
        self._own_rows: list[Row] = []
        self._max_candidates, self._compute_cost = max_candidates, compute_cost
        self._running: dict[str, dict[int, Candidate]] = {}
        self._claimed: dict[str, frozenset[str]] = {}
        self._thresholds: dict[int, list[tuple[float, float]]] = {}  # of the newest batch, by its first candidate
        self._blocked: list[Candidate] = []  # that wait for what a trial is training
        self.crashed_candidate: int | None = None  # a candidate whose trial ended in an error
        self.stopped = False
        self.unbatchable: dict[str, list[int]] = {}  # why candidates could not be trained with others
        self.failed: dict[int, str] = {}  # why candidates have no score

    def list_needed_keys(self, candidate: Candidate) -> frozenset[str]:
        """List keys of what a candidate will train and leave in the results store.

        What one trial is about to train, no other may: a candidate that needs it too waits.
        """
        return frozenset()

    def on_completed(self, candidate: Candidate, trained_folds: Collection[int]) -> None:
        """Called with each candidate that the kept study knows the score of, and the folds that have scores too."""

    def on_progress(self, n_completed: int, note: str) -> None:
        """Called with how many candidates have a score."""

    def suggest(self, trial_id: str) -> Any:
        if self.crashed_candidate is not None or self.stopped:
            return Searcher.FINISHED
        self._store.check_lock()  # a study in a database has no other guard
        candidates: dict[int, Candidate] = {}
        ended = False
        while len(candidates) < self._max_candidates:
            try:
                candidate = self._take_candidate(trial_id)
            except StopIteration:
                ended = True
                break
            if candidate is None:
                break
            candidates[candidate.number] = candidate
        if not candidates:
            return Searcher.FINISHED if ended else None
        self._running[trial_id] = candidates
        return {
            "candidates": [(c.number, c.changes) for c in candidates.values()],
            "pruning_thresholds": self._list_thresholds(min(candidates)),
            "known_rows": [row for c in candidates.values() for row in self._find_known_rows(c)],
        }

    def _list_thresholds(self, number: int) -> list[tuple[float, float]]:
        """List the pruning thresholds of a candidate: those of its whole batch, as earlier batches are all scored."""
        batch = number - number % self._study.search.ask_batch_size
        if batch not in self._thresholds:
            found = compute_pruning_thresholds(self._rows, SELECTION_METRIC, batch, self._study.search)
            self._thresholds = {batch: sorted(found.items())}
        return self._thresholds[batch]

    def _take_candidate(self, trial_id: str) -> Candidate | None:
        """One that may start now, which this trial then has a claim on what it needs."""
        for candidate in self._blocked:
            if self._try_claim(trial_id, candidate):
                self._blocked.remove(candidate)
                return candidate
        while True:
            try:
                candidate = self._study.ask()
            except StopIteration:
                if self._blocked:
                    return None
                raise
            if candidate is None or self._try_claim(trial_id, candidate):
                return candidate
            self._blocked.append(candidate)

    def _try_claim(self, trial_id: str, candidate: Candidate) -> bool:
        needs = self.list_needed_keys(candidate)
        others = (claimed for trial, claimed in list(self._claimed.items()) if trial != trial_id)
        if any(needs & claimed for claimed in others):
            return False
        self._claimed[trial_id] = self._claimed.get(trial_id, frozenset()) | needs
        return True

    def _find_known_rows(self, candidate: Candidate) -> list[Row]:
        """Rows of an equal candidate that was scored before: lists of values are drawn again and again."""
        if not self.list_needed_keys(candidate):
            return []  # so cheap that it is trained again
        changes = json.dumps(candidate.changes, sort_keys=True)
        equal = [r for r in self._rows if r["changes"] == changes and math.isfinite(r[SELECTION_METRIC])]
        return list({row["fold"]: row for row in equal}.values())

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Some candidates of a trial are finished."""
        running = self._running.get(trial_id, {})
        finished: list[tuple[Candidate, float, bool, float]] = []
        trained_folds: dict[int, list[int]] = {}
        for summary in json.loads(result.get("summaries", "[]")):
            candidate = running.pop(summary["candidate"], None)
            if candidate is None:
                continue
            score, cost = summary[SELECTION_METRIC], self._compute_cost(candidate)
            finished.append((candidate, score, summary["pruned"], cost))
            folds = summary["folds"]
            trained_folds[candidate.number] = [f["fold"] for f in folds if math.isfinite(f[SELECTION_METRIC])]
            state = "PRUNED" if summary["pruned"] else "COMPLETE"
            if summary["unbatchable_reason"]:
                self.unbatchable.setdefault(summary["unbatchable_reason"], []).append(candidate.number)
            if summary.get("failed"):
                self.failed[candidate.number] = summary["failed"]
            new_rows: list[Row] = [
                {"study": self._study.name, "candidate": candidate.number}
                | {"state": state if math.isfinite(score) else "FAIL"}
                | {"changes": json.dumps(candidate.changes, sort_keys=True)}
                | ({"cost": cost} if self._study.search.cost else {})
                | fold
                for fold in folds
            ]
            self._rows += new_rows
            self._own_rows += new_rows
        if not finished:
            return
        # The rows first: a candidate that is completed but has no rows could not be made up for.
        self._store.write_candidates(self._own_rows, self._rows)
        for candidate, score, pruned, cost in finished:
            self._study.tell(candidate.number, score, pruned=pruned, cost=cost)
        # Only what the kept study knows may be forgotten.
        self._store.upload_journal(self._study)
        for candidate, *_ in finished:
            self.on_completed(candidate, trained_folds[candidate.number])
        self.on_progress(len(self._study.completed()), self._format_note())

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and not error:
            self.on_trial_result(trial_id, result)
        self._claimed.pop(trial_id, None)
        for number in self._running.pop(trial_id, {}):
            # A dead worker or a store that does not answer says nothing of a candidate: it stays open in the study.
            self.crashed_candidate = number
            return

    def _format_note(self) -> str:
        best = self._study.find_best()
        return f" best {best[1]:.3f}" if best else ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to the pickle that Tune makes of it, which nobody reads."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from the study, never from Tune's pickles."""

    def restore(self, checkpoint_path: str) -> None:
        raise ConfigError("a search is resumed by the same command, from its study; Tune's own state is not read")


class WaitNotifier(tune.Callback):
    """Tells when no trial has run for a while, though some are there: nothing has room for them.

    Args:
        notify: Called with True every now and then while that lasts, and with False when it is over.
    """

    def __init__(self, notify: Callable[[bool], None]) -> None:
        self._notify, self._idle_since, self._notified = notify, time.monotonic(), False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        open_trials = [trial for trial in trials if not trial.is_finished()]
        if not open_trials or any(trial.status == Trial.RUNNING for trial in open_trials):
            self._idle_since = time.monotonic()
            if self._notified:
                self._notified = False
                self._notify(False)
        elif time.monotonic() - self._idle_since > WAIT_NOTICE_S:
            self._notified = True
            self._notify(True)
