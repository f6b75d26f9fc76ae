"""Plan a search: its inner folds, the encoders that candidates share, and the study's name."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import (
    LabeledRecording,
    Split,
    list_labeled_recordings,
    make_inner_splits,
    make_split,
    mark_unequal_classes,
)
from eav_ray.errors import ConfigError
from eav_ray.pipelines.search.search_store import SearchStore
from eav_ray.storage import Store
from eav_ray.training.run_spec import Run, plan_encoder_run, plan_runs, plan_runs_of_splits
from eav_ray.tuning.search_space import apply_candidate, check_search_space, is_integer_key
from eav_ray.tuning.study import count_candidates, make_study_name


@dataclass(frozen=True)
class InnerCV:
    """What every candidate of a search is scored on."""

    splits: list[Split]
    data_digest: str  # digest of the shards' content
    embedded_recordings: tuple[str, ...]  # recordings that the search may see at all

    def plan_runs(self, experiment: Experiment, split: Split) -> list[Run]:
        """Plan what one candidate trains on one split; the last run is the result."""
        return plan_runs(experiment, split, self.data_digest, embedded_recordings=self.embedded_recordings)


def plan_candidate_runs(experiment: Experiment, inner_cv: InnerCV) -> list[list[Run]]:
    """Plan what one candidate trains on each inner fold; the last run of each is scored."""
    return plan_runs_of_splits(
        experiment, inner_cv.splits, inner_cv.data_digest, embedded_recordings=inner_cv.embedded_recordings
    )


@dataclass(frozen=True)
class SearchPlan:
    """All trainings of a search and of its refit, before anything starts."""

    experiment: Experiment
    outer_split: Split
    inner_cv: InnerCV
    inner_encoder_runs: list[Run]  # equal sets of training rows are trained once; none where candidates train their own
    outer_encoder_runs: list[Run]
    study_name: str
    locked_store: SearchStore | None = None  # while this process holds the search

    @property
    def fold(self) -> int:
        """Number of the outer fold."""
        return self.experiment.split.index

    @property
    def store(self) -> SearchStore:
        """What the results store keeps of this search."""
        return self.locked_store or SearchStore(Store(self.experiment.store.results), self.study_name)

    @contextlib.contextmanager
    def lock(self) -> Iterator["SearchPlan"]:
        """Hold the search for this process alone; returns the plan whose store it may write.

        Raises:
            DataError: Another process holds it.
        """
        with self.store.lock(self.experiment) as store:
            yield replace(self, locked_store=store)

    @property
    def encoder_runs(self) -> list[Run]:
        return self.inner_encoder_runs + self.outer_encoder_runs

    def list_candidate_runs(self) -> list[Run]:
        """List what the candidates that are left train on all inner folds, beside those encoders."""
        shared, e = {run.key for run in self.inner_encoder_runs}, self.experiment
        each = [run for fold in plan_candidate_runs(e, self.inner_cv) for run in fold if run.key not in shared]
        return each * max(0, count_candidates(e.search) - self.store.count_scored())

    def list_refit_runs(self) -> list[Run]:
        """List what the refit of the best candidates trains, beside those encoders; nothing where it is done."""
        shared, e = {run.key for run in self.outer_encoder_runs}, self.experiment
        if self.store.is_finished(e.search):
            return []
        each = [run for run in self.inner_cv.plan_runs(e, self.outer_split) if run.key not in shared]
        return each * min(e.search.refit, count_candidates(e.search))


def plan_search(experiment: Experiment, data: Dataset) -> SearchPlan:
    """Plan which trainings a search needs.

    Raises:
        ConfigError: Nothing to search, a protocol without validation rows, a fold that does not exist, or a value of
            the search space that the experiment does not allow.
    """
    e = experiment
    if e.search.mode == "fusion" and (len(e.data.modalities) < 2 or not e.fusion.has_parameters):
        raise ConfigError(
            "a search of fusions needs two data.modalities or more, and a fusion.kind that has parameters; "
            "search.mode=full searches trainings of everything"
        )
    check_search_space(e)
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    inner, outer = make_inner_splits(items, e.split), make_refit_split(make_split(items, e.split), items)
    inner_cv = InnerCV(inner, data.digest, outer.train)
    if e.search.mode == "full":
        _check_effect(e, inner_cv)
    names = sorted(e.data.modalities) if _has_shared_encoders(e) else []
    inner_encoders, outer_encoders = (
        [plan_encoder_run(e, m, s, data.digest, inner_cv.embedded_recordings) for s in splits for m in names]
        for splits in (inner, [outer])
    )
    # Where candidates train all themselves, what the experiment as it stands would train says what else they have.
    unchanged_runs = plan_candidate_runs(e, inner_cv) if e.search.mode == "full" else []
    keys = [run.key for runs in (inner_encoders, *unchanged_runs) for run in runs]
    study_name = make_study_name(e, data.digest, inner, keys)
    unique = list({run.key: run for run in inner_encoders}.values())
    return SearchPlan(e, outer, inner_cv, unique, outer_encoders, study_name)


def _check_effect(e: Experiment, inner_cv: InnerCV) -> None:
    """Refuse a key that changes nothing that a candidate trains: all its values would be trained and compared.

    Raises:
        ConfigError: Naming the key.
    """
    for key, choice in e.search.space.items():
        values = (choice.choice[0], choice.choice[-1]) if choice.choice else (choice.low, choice.high)
        keys_by_value: list[list[list[str]]] = []
        for value in values:
            with contextlib.suppress(ConfigError):  # alone it may not fit the rest, where others of the space do
                typed = int(value) if isinstance(value, float) and value.is_integer() and is_integer_key(key) else value
                runs = plan_candidate_runs(apply_candidate(e, {key: typed}), inner_cv)
                keys_by_value.append([[run.key for run in fold] for fold in runs])
        if len(keys_by_value) == 2 and values[0] != values[1] and keys_by_value[0] == keys_by_value[1]:
            raise ConfigError(
                f"search.space.{key} changes nothing that train.mode={e.train.mode} trains of "
                f"{', '.join(sorted(e.data.modalities))}; take it out of the space"
            )


def _has_shared_encoders(e: Experiment) -> bool:
    """Whether all candidates have the same encoders, which are then trained before them."""
    trains_own = e.train.mode == "end_to_end" or len(e.data.modalities) == 1
    return not trains_own and all(key.startswith(("fusion.", "optim.")) for key in e.search.space)


def make_refit_split(split: Split, items: Sequence[LabeledRecording]) -> Split:
    """After the choice, the rows that served it are trained on too."""
    refit = replace(split, train=tuple(sorted((*split.train, *split.validation))), validation=())
    return mark_unequal_classes(refit, items)
