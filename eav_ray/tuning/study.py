"""The client of an Optuna study: the one process that asks Optuna for candidates and tells it their scores.

Candidates are suggested in fixed batches, each by a sampler seeded from (study, candidate number), and a batch is only
suggested when the one before it is scored. A search that was killed and started again therefore suggests what the
uninterrupted one would have.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from eav_ray.config import Experiment, SearchConfig, digest
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError, describe_error
from eav_ray.tuning.search_space import decode_grid_point, make_distribution

STUDY_FORMAT = 3  # raise when a study would be asked or told in another way: it is then another study
# What Optuna raises on a journal that it did not write: it believes every line.
JOURNAL_ERRORS = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
OWNER = "eav_ray.results"  # attribute of a study in a database: the results store that it was begun with
CLAIM_S = 5.0  # in which whoever made a study in a database has said whose it is


@dataclass(frozen=True)
class Candidate:
    number: int
    changes: dict[str, Any]  # dotted keys


@dataclass(frozen=True)
class StoreIdentity:
    """What tells the results store of a search from all others.

    Attributes:
        identifier: Stays the same when the store is moved.
    """

    identifier: str
    path: str


def make_study_name(experiment: Experiment, data_digest: str, splits: list[Split], encoders: list[str]) -> str:
    """Equal only for equal questions: space, data, protocol, fold, encoders, seed. Not for the budget.

    Optuna's default name is one fixed string, and searches that share a storage would merge silently.

    Args:
        encoders: Keys of the trainings that all candidates share, or of those that they would all have without changes.
    """
    e = experiment
    space = {key: vars(choice) for key, choice in e.search.space.items()}
    optim = vars(e.optim)
    if e.optim.class_weights == "auto":
        optim = optim | {"class_weights": any(s.unequal_classes for s in splits)}
    fixed = (vars(e.fusion), optim, e.search.sampler, e.search.ask_batch_size, e.seed, vars(e.split))
    inner = [[sorted(s.train), sorted(s.validation)] for s in splits]
    options = (e.search.prune, e.search.mode, e.search.cost, e.search.rungs)
    return f"{e.name}-{digest(STUDY_FORMAT, space, fixed, data_digest, inner, sorted(encoders), *options)}"


class StudyClient:
    """Asks and tells one study.

    Args:
        storage: A local file, Optuna's journal, or the URL of a database. Created where it is missing; a study of that
            name in it is continued.
        owner: The results store, for a study in a database.
    Raises:
        DataError: The file is no journal, or was damaged.
        ConfigError: The database cannot be opened, or its study was begun with another results store.
    """

    def __init__(
        self, search: SearchConfig, name: str, storage: Path | str, owner: StoreIdentity | None = None
    ) -> None:
        self.search, self.name = search, name
        self._distributions = {key: make_distribution(key, choice) for key, choice in search.space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._directions = [StudyDirection.MAXIMIZE, *([StudyDirection.MINIMIZE] if search.cost else [])]
        if isinstance(storage, str):
            self._study = _open_database(storage, name, self._directions, owner)
        else:
            self._study = _open_journal(storage, name, self._directions)
        self._batch_study: optuna.Study | None = None  # of the batch that is asked for
        # What an earlier client left running is run again, under its own number: nobody else has this study.
        self._resumed = [t.number for t in self._trials if t.state == TrialState.RUNNING]

    @property
    def _trials(self) -> list[FrozenTrial]:
        with database_errors(self.search.storage):
            return self._study.get_trials(deepcopy=False)

    @property
    def n_candidates(self) -> int:
        return count_candidates(self.search)

    @property
    def n_asked(self) -> int:
        return len(self._trials)

    def ask(self) -> Candidate | None:
        """The next candidate; None while the batch before it is not scored. Raises StopIteration at the end."""
        if self._resumed:
            trial = self._trials[self._resumed.pop(0)]
            return Candidate(trial.number, dict(trial.params))
        number = self.n_asked
        if number >= self.n_candidates:
            raise StopIteration
        if number % self.search.ask_batch_size == 0 and any(t.state == TrialState.RUNNING for t in self._trials):
            return None
        params = self._suggest(number)
        # One entry of the journal: a search killed here leaves the whole candidate or none of it.
        trial = create_trial(state=TrialState.RUNNING, params=params, distributions=self._distributions)
        with database_errors(self.search.storage):
            self._study.add_trial(trial)
        return Candidate(number, params)

    def _suggest(self, number: int) -> dict[str, Any]:
        """A function of the scores of earlier batches alone: its own batch counts as running."""
        if self.search.sampler == "grid":
            return decode_grid_point(self.search.space, number)
        trials = self._trials[:number]
        n_in_batch = number % self.search.ask_batch_size
        if self._batch_study is None or not n_in_batch or len(self._batch_study.get_trials(deepcopy=False)) != number:
            make = self._replay_study if self.search.sampler == "cmaes" else self._copy_study
            self._batch_study = make(trials, number - n_in_batch)
        if self.search.sampler != "cmaes":  # which has a state, and is one for all candidates
            self._batch_study.sampler = self._make_sampler(number)
        # What it suggests stays in the copy as running, as it does in the study.
        return dict(self._batch_study.ask(self._distributions).params)

    def _copy_study(self, trials: Sequence[FrozenTrial], batch: int) -> optuna.Study:
        """The study in memory, without the scores of the batch that begins with this number."""
        study = optuna.create_study(directions=self._directions)
        for trial in trials:
            if trial.number >= batch:
                trial = create_trial(state=TrialState.RUNNING, params=trial.params, distributions=self._distributions)
            study.add_trial(trial)
        return study

    def _replay_study(self, trials: Sequence[FrozenTrial], batch: int) -> optuna.Study:
        """The study in memory, whose sampler was led through all that came before; once a batch.

        Optuna keeps the state of such a sampler as a pickle beside the study; here it never leaves the memory.
        """
        study = optuna.create_study(directions=self._directions, sampler=self._make_sampler(batch))
        worst = min((t.value for t in trials[:batch] if t.value is not None), default=0.0)
        for start in range(0, len(trials), self.search.ask_batch_size):
            generation = trials[start : start + self.search.ask_batch_size]
            asked = [study.ask(self._distributions) for _ in generation]
            if start == batch:
                break  # its own batch, of which nothing is known
            for trial, known in zip(asked, generation, strict=True):
                if known.state == TrialState.COMPLETE:
                    study.tell(trial, known.value)
                elif known.state == TrialState.PRUNED:
                    study.tell(trial, worst)  # it learns nothing from one without a value
                else:
                    study.tell(trial, state=TrialState.FAIL)
        return study

    def tell(self, number: int, score: float, *, pruned: bool = False, cost: float = math.nan) -> None:
        """A finished candidate. A score that is not a number is a failure, never the best; nor is one on some folds.

        Args:
            cost: Where there is a `search.cost`.
        """
        with database_errors(self.search.storage):
            if not math.isfinite(score) or (self.search.cost and not math.isfinite(cost)):
                self._study.tell(number, state=TrialState.FAIL)
            elif pruned:
                self._study.tell(number, state=TrialState.PRUNED)
            else:
                self._study.tell(number, [score, cost] if self.search.cost else score)

    def completed(self) -> list[int]:
        return [t.number for t in self._trials if t.state.is_finished()]

    def list_changes(self) -> dict[int, dict[str, Any]]:
        """Of every candidate that is completed."""
        return {t.number: dict(t.params) for t in self._trials if t.state.is_finished()}

    def find_best(self) -> tuple[Candidate, float] | None:
        """The best completed candidate; of equals the first."""
        return next(iter(self.rank()), None)

    def rank(self) -> list[tuple[Candidate, float]]:
        """Completed candidates and their scores, the best first.

        With a cost, those that no other beats in both.
        """
        complete = [t for t in self._trials if t.state == TrialState.COMPLETE]
        if self.search.cost:
            complete = self._study.best_trials
        ranked = sorted(complete, key=lambda t: (*(-s * v for s, v in zip((1, -1), t.values, strict=False)), t.number))
        return [(Candidate(t.number, dict(t.params)), float(t.values[0])) for t in ranked]

    def compute_importances(self) -> dict[str, float]:
        """How much of the spread of the scores each key of the space explains, in all 1; empty of too few to say.

        By Optuna's fANOVA (Hutter, Hoos and Leyton-Brown, 2014).
        """
        scores = {t.values[0] for t in self._trials if t.state == TrialState.COMPLETE}
        varied = [key for key, distribution in self._distributions.items() if not distribution.single()]
        if len(scores) < 2 or not varied:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return optuna.importance.get_param_importances(
                self._study, evaluator=evaluator, params=varied, target=lambda t: t.values[0]
            )
        except RuntimeError:  # scores that differ by nothing, or of equal candidates
            return {}

    def _make_sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(digest(self.name, number, length=8), 16) % 2**31
        match self.search.sampler:
            case "tpe":
                # The liar keeps the candidates of one batch apart while none of them has a score.
                n_startup = self.search.ask_batch_size
                return optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=n_startup)
            case "cmaes":
                # One for all candidates: it is followed from the first on (`_replay_study`).
                seed = int(digest(self.name, length=8), 16) % 2**31
                return optuna.samplers.CmaEsSampler(
                    seed=seed, popsize=self.search.ask_batch_size, n_startup_trials=0, warn_independent_sampling=False
                )
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def count_candidates(search: SearchConfig) -> int:
    """How many candidates there will be: what was asked for, but not more than a grid has."""
    if search.sampler != "grid":
        return search.candidates
    return min(search.candidates, math.prod(len(choice.choice) for choice in search.space.values()))


class _NoLock(JournalFileOpenLock):
    """Locks nothing: who writes a journal holds the lock of its search (`SearchStore.lock`).

    Optuna's locks are files that a killed process leaves behind, and the next would wait for; its default one is a
    symbolic link, which not every file system has.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _open_journal(path: Path, name: str, directions: Sequence[StudyDirection]) -> optuna.Study:
    try:
        backend = JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock(str(path))))
        return optuna.create_study(study_name=name, storage=backend, directions=directions, load_if_exists=True)
    except JOURNAL_ERRORS as error:
        raise DataError(
            f"{path} is no journal of a search ({describe_error(error)}); delete it and search anew"
        ) from None


def _open_database(
    url: str, name: str, directions: Sequence[StudyDirection], owner: StoreIdentity | None
) -> optuna.Study:
    try:
        try:
            study = optuna.create_study(study_name=name, storage=url, directions=directions)
            is_new = True
        except DuplicatedStudyError:
            study, is_new = optuna.load_study(study_name=name, storage=url), False
        if owner:
            _claim_study(study, owner, is_new=is_new)
        return study
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - what a database's driver raises is its own
        raise ConfigError(f"search.storage={url} cannot be opened: {_describe_cause(error)}") from None


def _claim_study(study: optuna.Study, owner: StoreIdentity, *, is_new: bool) -> None:
    """Let a study in a database be searched with one results store: two would ask and tell it at once.

    Whose it is says whoever made it, which the database lets one process do.

    Raises:
        ConfigError: It was begun with another results store.
    """
    deadline = time.monotonic() + CLAIM_S
    found: dict[str, str] | None = None
    while not is_new and not (found := study.user_attrs.get(OWNER)) and not study.trials:
        if time.monotonic() > deadline:
            break  # whoever made it was killed before it could say so
        time.sleep(0.1)
    if not found:  # it is new, or older than this rule
        study.set_user_attr(OWNER, {"id": owner.identifier, "path": owner.path})
    elif found.get("id") != owner.identifier:
        raise ConfigError(
            f"the study {study.study_name} was begun with another results store, {found.get('path', '?')}; use that "
            "one and its searches/, or another search.storage"
        )


@contextlib.contextmanager
def database_errors(storage: str) -> Iterator[None]:
    """Say in one line what a study's database refuses.

    Raises:
        DataError: With the cause, which Optuna hides.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = _describe_cause(error)
        if "locked" in cause:
            raise DataError(f"search.storage={storage} is locked by another program ({cause}); end that one") from None
        raise DataError(f"search.storage={storage} cannot be read or written: {cause}") from None


def _describe_cause(error: BaseException) -> str:
    """Say what an error was raised from first: Optuna's own text guesses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return describe_error(error)
