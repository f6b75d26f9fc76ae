"""Baselines over all folds of a protocol: fitted, predicted, stored and shown. One machine, no Ray, no GPU."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from eav_ray.config import Experiment, build_experiment, digest, order_modalities, to_dict
from eav_ray.data.io import parquet
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import (
    CROSS_SUBJECT_PROTOCOLS,
    LabeledRecording,
    count_folds,
    list_labeled_recordings,
    make_inner_splits,
    make_split,
)
from eav_ray.distributed.machine_limits import count_usable_cpus, measure_free_memory
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.baselines.classifiers import KINDS, require_kinds
from eav_ray.evaluation.baselines.folds import (
    BaselineData,
    PlannedFold,
    check_access,
    list_titles,
    predict_folds,
    summarize_baselines,
)
from eav_ray.evaluation.baselines.inputs import ALL_KINDS, Source, compute_inputs, list_baselines
from eav_ray.evaluation.baselines.number_folds import (
    compare_with_baselines,
    list_number_titles,
    summarize_number_baselines,
)
from eav_ray.evaluation.baselines.regressors import NUMBER_KINDS
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.pipelines.evaluate.audited_checkpoint import DAMAGED_FILE_ERRORS, describe_damage
from eav_ray.reporting.html import build_table
from eav_ray.reporting.sections.baselines import BASELINE_COLUMNS, NUMBER_BASELINE_COLUMNS
from eav_ray.reporting.tables import describe_test_side, format_table
from eav_ray.storage import Store, check_format, encode_documents, list_package_versions
from eav_ray.training.metrics import RECORDING_COLUMNS
from eav_ray.words import format_count, format_recordings

FORMAT_VERSION = 1  # raise when what baselines compute, or what is kept of them, changes
FOLDER = "baselines"
PROCESS_BYTES = 2**29  # of a process without inputs
MIN_PARALLEL_WINDOWS = 20_000  # of all folds together; below it processes take longer to start than they save


@dataclass(frozen=True)
class BaselineResult:
    """What the results store keeps.

    Attributes:
        predictions: Of all folds, one row a window, with a column `fold`.
        titles: Of the sources of predictions.
        folds: `fold`, `test`, and what was `chosen`.
        data_digest: Of the shards.
    """

    predictions: pd.DataFrame
    titles: dict[str, str]
    folds: list[dict[str, Any]]
    data_digest: str


@dataclass(frozen=True)
class BaselineReport:
    result: BaselineResult
    rows: list[ResultsTree]
    text: str


def run_baselines(experiment: Experiment, kinds: Sequence[str] = (), data: Dataset | None = None) -> BaselineReport:
    """Fit and test baselines on every fold of the experiment's protocol, or read what the results store has of them.

    Args:
        experiment: `split.index` does not matter, and neither do models and trainings.
        kinds: Names of classifiers; all by default.
        data: Its shards, where they are open: they may hold more modalities than the experiment names.
    Raises:
        ConfigError: A fold that cannot be made, no baseline, or a package that is missing.
        DataError: There are no shards, or another process is at the same.
    """
    e = experiment
    check_access(e.split)
    sources = list_baselines(order_modalities(e.data.modalities), kinds, numbers=e.data.predicts_numbers)
    require_kinds([source.kind for source in sources], kinds=NUMBER_KINDS if e.data.predicts_numbers else KINDS)
    data, results = data or open_dataset(e), Store(e.store.results)
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    folds = plan_folds(e, items)
    name = f"{FOLDER}/{make_baseline_key(e, data, folds, sources)}"
    with results.lock_unfinished(name) as results:
        if results.is_committed(name):
            result = read_baseline_result(results, name)
        else:
            result = _compute_baselines(e, data, items, folds, sources)
            results.commit(name, _encode_result(e, result))
    rows = _summarize(result.predictions, result.titles, data)
    return BaselineReport(result, rows, _format_report(e, folds, result, rows, results.format_path(name)))


def plan_folds(e: Experiment, items: list[LabeledRecording]) -> list[PlannedFold]:
    """Plan every fold of the experiment's protocol, as `eav protocol` divides it.

    Raises:
        ConfigError: A fold that cannot be made.
    """
    planned = []
    has_choices = e.split.protocol in (*CROSS_SUBJECT_PROTOCOLS, "within_validated")
    for number in range(count_folds(items, e.split)):
        split = replace(e.split, index=number)
        inner = tuple(make_inner_splits(items, split)) if has_choices else ()
        planned.append(PlannedFold(number, make_split(items, split), inner))
    return planned


def make_baseline_key(e: Experiment, data: Dataset, folds: list[PlannedFold], sources: Sequence[Source]) -> str:
    """Make a key of all that predictions depend on."""
    sides = [[sorted(side) for side in one.sides.values()] for f in folds for one in (f.split, *f.inner)]
    own_kinds = {s.kind: ALL_KINDS[s.kind] for s in sources}
    kinds = {name: [dict(p) for p in (*kind.grid, kind.default)] for name, kind in own_kinds.items()}
    read = [[s.name, get_modality(s.modality).baseline_revision] for s in sources]
    labels = [e.data.labels, e.seed if e.data.labels != "true" else 0]
    access = [e.split.access, e.split.access_recordings]
    return f"{e.name}-{digest(FORMAT_VERSION, data.digest, sides, kinds, read, labels, access)}"


def _compute_baselines(
    e: Experiment, data: Dataset, items: list[LabeledRecording], folds: list[PlannedFold], sources: list[Source]
) -> BaselineResult:
    reading_covariances = {s.modality for s in sources if s.reads_covariances}
    modalities = dict.fromkeys(s.modality for s in sources)
    inputs = {
        m: compute_inputs(data.windows, m, e, with_covariances=m in reading_covariances)
        for m in tqdm(modalities, desc="features", unit="modality", disable=None)
    }
    label = data.windows.ids["id"].map({i.id: i.label for i in items}).fillna(-1).to_numpy(np.int64)
    shared = BaselineData(data.windows.ids, label, inputs, len(data.index.classes), _list_targets(data, items))
    tables, records = [], []
    predicted = zip(
        folds, predict_folds(shared, folds, sources, e.split, _count_processes(shared, len(folds))), strict=True
    )
    for fold, found in tqdm(predicted, desc="folds", unit="fold", total=len(folds), disable=None):
        tables.append(found.predictions)
        records.append({"fold": fold.number, "test": list(fold.split.test), "chosen": found.chosen})
    titles = list_number_titles(sources) if data.index.targets else list_titles(sources)
    return BaselineResult(pd.concat(tables, ignore_index=True), titles, records, data.digest)


def _list_targets(data: Dataset, items: Sequence[LabeledRecording]) -> np.ndarray | None:
    """List (windows, targets) numbers, NaN of recordings that are not used; None where classes are predicted."""
    if not data.index.targets:
        return None
    by_id = {i.id: i.targets for i in items}
    unknown = (np.nan,) * len(data.index.targets)
    return np.array([by_id.get(i, unknown) for i in data.windows.ids["id"]], np.float64)


def _summarize(predictions: pd.DataFrame, titles: dict[str, str], data: Dataset) -> list[ResultsTree]:
    if data.index.targets:
        return summarize_number_baselines(predictions, titles, data.index.targets)
    return summarize_baselines(predictions, titles)


def _count_processes(data: BaselineData, n_folds: int) -> int:
    """How many folds are predicted at a time: each process has a copy of all inputs, and one of those of a fold."""
    if len(data.label) * n_folds < MIN_PARALLEL_WINDOWS:
        return 1
    n_fitting = int(measure_free_memory() // (4 * data.n_bytes + PROCESS_BYTES))
    return max(1, min(n_folds, count_usable_cpus(), n_fitting))


def _encode_result(e: Experiment, result: BaselineResult) -> dict[str, bytes]:
    kept = {
        "format": FORMAT_VERSION,
        "data_digest": result.data_digest,
        "titles": list(result.titles.items()),
        "folds": result.folds,
    }
    documents = {"experiment": to_dict(e), "folds": kept, "versions": list_package_versions()}
    return encode_documents(documents) | {"predictions.parquet": parquet.encode_dataframe(result.predictions)}


def read_baseline_result(results: Store, name: str) -> BaselineResult:
    """Read what the results store keeps of baselines.

    Raises:
        DataError: It was damaged, or is of another version.
    """
    path = results.format_path(name)
    files = results.read_committed(name)
    try:
        tree, table = json.loads(files["folds.json"]), files["predictions.parquet"]
        number, folds, data_digest = (tree.get(k) for k in ("format", "folds", "data_digest"))
        titles = dict(tree["titles"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise DataError(f"{path} was damaged; delete it and give the command again") from None
    check_format(number, FORMAT_VERSION, path, "delete it and give the command again")
    return BaselineResult(parquet.decode_dataframe(table, path), titles, folds, data_digest)


def _format_report(
    e: Experiment, folds: list[PlannedFold], result: BaselineResult, rows: list[ResultsTree], path: str
) -> str:
    recordings = result.predictions[RECORDING_COLUMNS].drop_duplicates()
    unit, columns = ("percent", BASELINE_COLUMNS)
    if e.data.predicts_numbers:
        unit, columns = "CCC, Pearson and RMSE", NUMBER_BASELINE_COLUMNS
    head = (
        f"{e.split.protocol}, {format_count(len(folds), 'fold')}: baselines, {unit}, "
        f"{format_recordings(len(recordings), recordings['subject'].nunique())} {describe_test_side(folds[0].split)}; "
        f"access to them {e.split.access}"
    )
    lines = [head, format_table(build_table(rows, columns))]
    described = {s.rsplit(".", 1)[-1] for s in result.titles}
    if absent := [m for m in order_modalities(e.data.modalities) if m not in described]:
        lines.append(f"no baseline of: {', '.join(absent)}")
    return "\n".join([*lines, f"predictions: {path}"])


def collect_baselines(
    results: Store, experiment: Experiment, data: Dataset, predictions: pd.DataFrame, skipped_results: list[str]
) -> ResultsTree | None:
    """Collect the stored baselines of the same shards, labels, split and access, on the recordings of predictions.

    Args:
        predictions: Those of the page.
        skipped_results: Is given a line for each file that is damaged.
    Returns:
        `access` and `rows` (`summarize_baselines`), each source once; None where there are none.
    """
    wanted, shown = _make_identity(experiment), set(predictions["subject"] + "/" + predictions["recording"])
    collected: list[list[ResultsTree]] = []
    tables: list[pd.DataFrame] = []
    for name in results.list_folders(FOLDER):
        prefix = f"{FOLDER}/{name}"
        if not results.is_committed(prefix):
            continue
        try:
            stored = build_experiment(results.read_json(f"{prefix}/experiment.json"), source=prefix)
            if _make_identity(stored) != wanted:
                continue
            kept = read_baseline_result(results, prefix)
            table = kept.predictions
            ids = table["subject"] + "/" + table["recording"]
            if kept.data_digest == data.digest and shown <= set(ids):
                table = table[ids.isin(shown).to_numpy()]
                collected.append(_summarize(table, kept.titles, data))
                tables.append(table)
        except ConfigError:  # of a version that had other keys
            continue
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, prefix, error))
    rows: dict[Any, ResultsTree] = {}
    order = sorted(range(len(collected)), key=lambda position: len(collected[position]), reverse=True)
    for position in order:  # the fusion is that of most baselines
        rows = {(row.get("target"), row["source"]): row for row in collected[position]} | rows
    if not rows:
        return None
    tree: ResultsTree = {"access": experiment.split.access, "rows": list(rows.values())}
    if data.index.targets:
        modalities = list(experiment.data.modalities)
        ordered = [tables[position] for position in order]
        tree["comparisons"] = compare_with_baselines(predictions, modalities, ordered, data.index.targets)
    return tree


def _make_identity(e: Experiment) -> str:
    """Make a digest of what a page and baselines must have in common, beside the shards."""
    labels = [e.data.labels, e.seed if e.data.labels != "true" else 0, sorted(e.data.subjects), sorted(e.data.tasks)]
    return digest(replace(e.split, index=0), labels, sorted(e.data.modalities))
