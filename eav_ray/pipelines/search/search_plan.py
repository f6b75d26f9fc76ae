"""Plan a search: its inner folds, the encoders that candidates share, and the study's name."""

import contextlib
from dataclasses import dataclass, replace

from eav_ray.config import Experiment, digest, override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split, list_labeled_recordings, make_inner_splits, make_split
from eav_ray.errors import ConfigError
from eav_ray.training.run_spec import Run, plan_encoder_run, plan_runs
from eav_ray.tuning.search_space import check_search_space, is_integer_key
from eav_ray.tuning.study import count_candidates, make_study_name


@dataclass(frozen=True)
class InnerCV:
    """What every candidate of a search is scored on."""

    splits: list[Split]
    data_digest: str  # digest of the shards' content
    embedded_recordings: tuple[str, ...]  # recordings that the search may see at all


def plan_candidate_runs(experiment: Experiment, inner_cv: InnerCV) -> list[list[Run]]:
    """What one candidate trains on each inner fold; the last run of each is scored."""
    return [
        plan_runs(experiment, split, inner_cv.data_digest, embedded_recordings=inner_cv.embedded_recordings)
        for split in inner_cv.splits
    ]


@dataclass(frozen=True)
class SearchPlan:
    """All trainings of a search and of its refit, before anything starts."""

    outer_split: Split
    inner_cv: InnerCV
    inner_encoder_runs: list[Run]  # equal sets of training rows are trained once; none where candidates train their own
    outer_encoder_runs: list[Run]
    study_name: str

    @property
    def encoder_runs(self) -> list[Run]:
        return self.inner_encoder_runs + self.outer_encoder_runs

    def list_candidate_runs(self, experiment: Experiment) -> list[Run]:
        """What all candidates train on all inner folds, beside those encoders."""
        shared = {run.key for run in self.inner_encoder_runs}
        each = [run for fold in plan_candidate_runs(experiment, self.inner_cv) for run in fold if run.key not in shared]
        return each * count_candidates(experiment.search)

    def list_refit_runs(self, experiment: Experiment) -> list[Run]:
        """What the refit of the best candidates trains, beside those encoders."""
        shared = {run.key for run in self.outer_encoder_runs}
        each = plan_runs(
            experiment,
            self.outer_split,
            self.inner_cv.data_digest,
            embedded_recordings=self.inner_cv.embedded_recordings,
        )
        return [run for run in each if run.key not in shared] * min(
            experiment.search.refit, count_candidates(experiment.search)
        )


def plan_search(experiment: Experiment, windows: WindowCache) -> SearchPlan:
    """Which trainings a search needs.

    Raises:
        ConfigError: Nothing to search, a protocol without validation rows, a fold that does not exist, or a value of
            the search space that the experiment does not allow.
    """
    e = experiment
    if e.search.mode == "fusion" and (len(e.data.modalities) < 2 or e.fusion.kind == "late_mean"):
        raise ConfigError(
            "a search of fusions needs two data.modalities or more, and a fusion.kind that has parameters; "
            "search.mode=full searches trainings of everything"
        )
    check_search_space(e)
    items = list_labeled_recordings(windows.ids, e.data, e.seed)
    inner, outer = make_inner_splits(items, e.split), make_refit_split(make_split(items, e.split))
    inner_cv = InnerCV(inner, digest(windows.index.fingerprint), outer.train)
    if e.search.mode == "full":
        _check_effect(e, inner_cv)
    names = sorted(e.data.modalities) if _has_shared_encoders(e) else []
    inner_encoders = [
        plan_encoder_run(e, m, s, inner_cv.data_digest, inner_cv.embedded_recordings) for s in inner for m in names
    ]
    outer_encoders = [plan_encoder_run(e, m, outer, inner_cv.data_digest, inner_cv.embedded_recordings) for m in names]
    # Where candidates train all themselves, what the experiment as it stands would train says what else they have.
    unchanged_runs = (
        [run for fold in plan_candidate_runs(e, inner_cv) for run in fold] if e.search.mode == "full" else []
    )
    study_name = make_study_name(e, inner_cv.data_digest, inner, [r.key for r in (*inner_encoders, *unchanged_runs)])
    return SearchPlan(outer, inner_cv, list({r.key: r for r in inner_encoders}.values()), outer_encoders, study_name)


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
                runs = plan_candidate_runs(override(e, {key: typed}), inner_cv)
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


def make_refit_split(split: Split) -> Split:
    """After the choice, the rows that served it are trained on too."""
    return replace(split, train=tuple(sorted((*split.train, *split.validation))), validation=())
