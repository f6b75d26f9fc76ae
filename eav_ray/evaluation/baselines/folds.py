"""Baselines on one fold of a protocol: chosen on inner folds, fitted on training rows, and the test rows predicted."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import threadpoolctl

from eav_ray.config import SplitConfig
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.evaluation.baselines.classifiers import KINDS, FoldRows, Rows, fit_and_predict
from eav_ray.evaluation.baselines.inputs import FUSED, Inputs, Source, normalise_within_subjects
from eav_ray.evaluation.baselines.number_folds import predict_numbers
from eav_ray.evaluation.results_tree import ResultsTree, finite_or_none
from eav_ray.evaluation.statistics import compute_share_interval
from eav_ray.processes import map_in_processes
from eav_ray.training.access import list_split_recordings
from eav_ray.training.metrics import LOGIT_PREFIX, WINDOW_COLUMNS, combine_by_rules, compute_scores
from eav_ray.training.subject_statistics import select_accessible_recordings

# Of a modality in a fusion where nothing could be chosen; the first that there is.
UNCHOSEN_ORDER = ("logistic", "svm", "riemann")


@dataclass(frozen=True)
class PlannedFold:
    """A fold and the inner folds of its training rows; none where the protocol has no rows to choose on."""

    number: int
    split: Split
    inner: tuple[Split, ...]


@dataclass(frozen=True)
class BaselineData:
    """What all folds share.

    Attributes:
        ids: One row a window, as `WindowCache.ids`.
        label: (windows,) class numbers, -1 of a window that no fold uses.
        inputs: By modality.
        targets: (windows, targets) true numbers, where these are predicted; there are no classes then.
    """

    ids: pd.DataFrame
    label: np.ndarray
    inputs: Mapping[str, Inputs]
    n_classes: int
    targets: np.ndarray | None = None

    @property
    def n_bytes(self) -> int:
        """Return the size of the inputs."""
        arrays = [x for one in self.inputs.values() for x in (one.features, one.covariances) if x is not None]
        return sum(x.nbytes for x in arrays)


@dataclass(frozen=True)
class FoldResult:
    """Predictions of the test windows, and what was chosen."""

    predictions: pd.DataFrame  # as `training.predictions` lays them out, of sources `Source.name` and `fused.<rule>`
    chosen: dict[str, Any]  # source -> parameters, inner score, temperature; `fused` -> kind by modality


def check_access(split: SplitConfig) -> None:
    """Check that baselines can be trained at an access level.

    Raises:
        ConfigError: It is that of an adaptation.
    """
    if split.access == "labelled_k":
        raise ConfigError(
            "split.access=labelled_k is what `eav adapt` makes of a checkpoint; baselines know source_only, "
            "unlabelled_block and unlabelled_first_n"
        )


def predict_folds(
    data: BaselineData, folds: Sequence[PlannedFold], sources: Sequence[Source], access: SplitConfig, n_processes: int
) -> Iterator[FoldResult]:
    """Predict folds (`predict_fold`) in their order, several at a time; their number changes no digit.

    Args:
        n_processes: How many at a time; with one, in this process.
    """
    if n_processes <= 1:
        for fold in folds:
            yield predict_fold(data, fold, sources, access)
        return
    n_done = 0
    try:
        predict = partial(_predict_shared, sources=sources, access=access)
        for found in map_in_processes(predict, folds, n_processes, initializer=_set_data, arguments=(data,)):
            yield found
            n_done += 1
    except BrokenProcessPool:  # one was killed, of too little memory perhaps, or the caller's program has no main
        print("a process ended that fitted baselines; going on with one at a time", file=sys.stderr, flush=True)
        for fold in folds[n_done:]:
            yield predict_fold(data, fold, sources, access)


_shared: dict[str, BaselineData] = {}  # of a process of `predict_folds`, so that it is sent once


def _set_data(data: BaselineData) -> None:
    _shared["data"] = data


def _predict_shared(fold: PlannedFold, sources: Sequence[Source], access: SplitConfig) -> FoldResult:
    return predict_fold(_shared["data"], fold, sources, access)


def predict_fold(data: BaselineData, fold: PlannedFold, sources: Sequence[Source], access: SplitConfig) -> FoldResult:
    """Predict the test windows of a fold by every baseline, and by the rules of fusion over the modalities.

    In a fusion each modality is represented by the kind that its inner folds found best.

    Args:
        access: Names the access level; the rest of it does not matter.
    Raises:
        DataError: A subject has no recording by which it could be normalised.
    """
    # One thread: sums of several are added in another order.
    with threadpoolctl.threadpool_limits(1):
        return _predict_fold(data, fold, sources, access)


def _predict_fold(data: BaselineData, fold: PlannedFold, sources: Sequence[Source], access: SplitConfig) -> FoldResult:
    inputs = dict(data.inputs)
    if access.access != "source_only":
        in_fold = data.ids["id"].isin(list_split_recordings(fold.split)).to_numpy()
        accessible = select_accessible_recordings(data.ids[in_fold], list_split_recordings(fold.split), access)
        inputs = {m: _normalise(one, m, data, in_fold, accessible) for m, one in inputs.items()}
    test = np.flatnonzero(data.ids["id"].isin(fold.split.test).to_numpy())
    table = data.ids.iloc[test][WINDOW_COLUMNS]
    if data.targets is not None:

        def select_rows(source: Source, truth_V: np.ndarray) -> FoldRows:
            return _select_rows(data, inputs[source.modality], fold, source, test, truth_V)

        in_training = data.ids["id"].isin(fold.split.train).to_numpy()
        columns, chosen = predict_numbers(sources, data.ids["id"], data.targets, in_training, test, select_rows)
        return FoldResult(table.assign(fold=fold.number, **columns).reset_index(drop=True), chosen)
    columns, chosen = _predict_classes(data, inputs, fold, sources, test)
    table = table.assign(label=data.label[test], fold=fold.number)
    return FoldResult(table.assign(**columns).reset_index(drop=True), chosen)


def _predict_classes(
    data: BaselineData, inputs: Mapping[str, Inputs], fold: PlannedFold, sources: Sequence[Source], test: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return columns of predictions of the test windows, and what was chosen."""
    columns: dict[str, np.ndarray] = {}
    chosen: dict[str, Any] = {}
    scores: dict[str, tuple[float, float] | None] = {}
    for source in sources:
        log_p_VK, choice = _predict_source(data, inputs[source.modality], fold, source, test)
        columns |= _name_columns(source.name, log_p_VK)
        if choice is not None:
            chosen[source.name] = {
                "parameters": dict(choice.parameters),
                "inner_score": choice.score and choice.score[0],
                "temperature": choice.temperature,
            }
            scores[source.name] = choice.score
    modalities = list(dict.fromkeys(s.modality for s in sources))
    if len(modalities) > 1:
        represented = {m: _choose_kind([s for s in sources if s.modality == m], scores) for m in modalities}
        logits = [
            np.stack([columns[c] for c in _list_columns(s.name, data.n_classes)], 1) for s in represented.values()
        ]
        logits_BMK = np.stack(logits, 1)
        present_BM = np.asarray(np.isfinite(logits_BMK).all(2))
        for rule, log_p_VK in combine_by_rules(logits_BMK, present_BM).items():
            columns |= _name_columns(f"{FUSED}.{rule}", log_p_VK)
        chosen[FUSED] = {m: s.kind for m, s in represented.items()}
    return columns, chosen


def _normalise(
    inputs: Inputs, modality: str, data: BaselineData, in_fold: np.ndarray, accessible: tuple[str, ...]
) -> Inputs:
    of_fold = Inputs(inputs.present & in_fold, inputs.features, inputs.covariances)
    may_look = data.ids["id"].isin(accessible).to_numpy()
    return normalise_within_subjects(of_fold, modality, data.ids["subject"].to_numpy(), may_look)


def _predict_source(
    data: BaselineData, inputs: Inputs, fold: PlannedFold, source: Source, test: np.ndarray
) -> tuple[np.ndarray, Any]:
    """Return (test windows, classes) log probabilities, NaN where the modality is missing, and the choice."""
    rows = _select_rows(data, inputs, fold, source, test, data.label)
    found = fit_and_predict(KINDS[source.kind], rows.train, rows.inner, rows.test_x, data.n_classes)
    log_p_VK = np.full((len(test), data.n_classes), np.nan)
    if found is None:
        return log_p_VK, None
    log_p_VK[rows.has], choice = found
    return log_p_VK, choice


def _select_rows(
    data: BaselineData, inputs: Inputs, fold: PlannedFold, source: Source, test: np.ndarray, truth_V: np.ndarray
) -> FoldRows:
    x = inputs.covariances if source.reads_covariances else inputs.features
    assert x is not None, "covariances are computed where a kind reads them"
    whole = Rows(x, truth_V, data.ids["id"].to_numpy())

    def select(recordings: Sequence[str]) -> Rows:
        return whole.select(data.ids["id"].isin(recordings).to_numpy() & inputs.present)

    inner = [(select(one.train), select(one.validation)) for one in fold.inner]
    has = inputs.present[test]
    return FoldRows(select(fold.split.train), inner, x[test[has]], has)


def _choose_kind(sources: Sequence[Source], scores: Mapping[str, tuple[float, float] | None]) -> Source:
    """Choose the kind that stands for a modality in a fusion: the best on inner folds, of equal ones the first."""
    in_order = sorted(sources, key=lambda s: UNCHOSEN_ORDER.index(s.kind))
    return max(in_order, key=lambda s: scores.get(s.name) or (-1.0, -1.0))


def _list_columns(source: str, n_classes: int) -> list[str]:
    return [f"{source}.{LOGIT_PREFIX}{k}" for k in range(n_classes)]


def _name_columns(source: str, log_p_VK: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(_list_columns(source, log_p_VK.shape[1]), log_p_VK.T, strict=True))


def list_titles(sources: Sequence[Source]) -> dict[str, str]:
    """Name the sources of predictions as tables do, those of the fusion last."""
    titles = {s.name: s.title for s in sources}
    if len({s.modality for s in sources}) > 1:
        titles |= {
            f"{FUSED}.product": "baselines fused, product of probabilities",
            f"{FUSED}.mean_probability": "baselines fused, mean of probabilities",
        }
    return titles


def summarize_baselines(windows: pd.DataFrame, titles: Mapping[str, str]) -> list[ResultsTree]:
    """Compute accuracy and balanced accuracy of recordings, and that of windows, by source.

    Each with its mean, SD and 95 % interval over subjects.

    Args:
        windows: Predictions of all folds (`FoldResult.predictions`). What a source knows nothing of counts as
            wrong.
        titles: Of the sources (`list_titles`).
    """
    rows = []
    for source, title in titles.items():
        scores = pd.DataFrame([compute_scores(own, source) for _, own in windows.groupby("subject")])
        row: ResultsTree = {"source": source, "title": title, "n_subjects": len(scores)}
        row["recordings"] = len(windows[["subject", "recording"]].drop_duplicates())
        for name in ("recording_balanced_accuracy", "recording_accuracy", "window_balanced_accuracy"):
            row |= {name: float(scores[name].mean()), f"{name}_sd": float(scores[name].std(ddof=1))}
            bounds = compute_share_interval(scores[name].to_numpy())
            row[f"{name}_interval"] = [finite_or_none(bounds.low), finite_or_none(bounds.high)]
        rows.append(row)
    return rows
