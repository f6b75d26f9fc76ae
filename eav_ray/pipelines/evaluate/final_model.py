"""A final model: trained on all subjects, with the settings and the expected result that a protocol or search found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import CROSS_SUBJECT_PROTOCOLS, list_labeled_recordings, make_final_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.expected_result import format_expected_result, summarize_expected_result
from eav_ray.evaluation.leak_audit.checks import LeakAudit, count_outcomes
from eav_ray.evaluation.leak_audit.final_model import ScoredModel, audit_final_model
from eav_ray.pipelines.evaluate.audited_checkpoint import read_encoder_train_ids
from eav_ray.pipelines.evaluate.provenance import collect_provenance
from eav_ray.pipelines.evaluate.split_predictions import predict_test_split
from eav_ray.pipelines.inference.checkpoint_names import open_recorded
from eav_ray.pipelines.search.nested_cv import make_nested_key, plan_fold_searches
from eav_ray.pipelines.search.search_plan import plan_search
from eav_ray.pipelines.train.cross_validation import make_protocol_key, plan_cv_folds, read_cv_result
from eav_ray.pipelines.train.train import train_unfinished
from eav_ray.reporting.formatting import format_changes
from eav_ray.reporting.model_card import render_final_model_card
from eav_ray.reporting.sections.provenance import describe_outcomes
from eav_ray.reporting.tables import format_collapse_warnings
from eav_ray.storage import Store
from eav_ray.storage.published_weights import list_starting_weights
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.checkpoint_files import STARTING_WEIGHTS
from eav_ray.training.run_spec import plan_runs
from eav_ray.tuning.best import read_best_record
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.words import format_count


@dataclass(frozen=True)
class FinalModel:
    path: str  # of the checkpoint
    card_path: str  # of its model card
    expected_result: dict[str, Any]
    audit: LeakAudit
    text: str


@dataclass(frozen=True)
class Finding:
    """What a protocol or a search has found.

    Attributes:
        source: Where it lies in the results store.
        description: What was tested, in a few words.
        changes: What a search changed of the experiment.
        choice: How the changes were chosen; empty where nothing was searched.
        predictions: Of tested subjects, one row a window.
        tested: The models that made them.
    """

    source: str
    description: str
    changes: dict[str, Any]
    choice: str
    predictions: pd.DataFrame
    tested: tuple[ScoredModel, ...]


def train_final_model(experiment: Experiment, *, searched: bool = False) -> FinalModel:
    """Train on all subjects, or continue it.

    Args:
        searched: With the settings that `eav protocol --search` found, or where that has not been run, `eav search`.

    Raises:
        ConfigError: A protocol that tests no subjects whom a model never saw.
        DataError: Nothing has been found yet, or the final model fails the audit.
    """
    e = experiment
    if e.split.protocol not in CROSS_SUBJECT_PROTOCOLS:
        raise ConfigError(
            f"split.protocol={e.split.protocol} tests subjects of whom other recordings were trained on, which does "
            f"not say what a model is worth on a new subject; use split.protocol={' or '.join(CROSS_SUBJECT_PROTOCOLS)}"
        )
    data, results = open_dataset(e), Store(e.store.results)
    finding = (_find_searched if searched else _find_protocol)(e, data, results)
    expected = summarize_expected_result(
        finding.predictions,
        sorted(e.data.modalities),
        len(data.index.classes),
        source=finding.source,
        description=finding.description,
    ) | {"changes": finding.changes, "choice": finding.choice}
    final = apply_candidate(replace(e, split=replace(e.split, index=0)), finding.changes)
    split = make_final_split(list_labeled_recordings(data.windows.ids, final.data, final.seed))
    *runs, last = plan_runs(final, split, data.digest)
    runs.append(replace(last, expected_result=expected))
    checkpoint = train_unfinished(final, runs, data, title="train on all subjects")
    return _describe_final_model(checkpoint, data, results, finding)


def _find_protocol(e: Experiment, data: Dataset, results: Store) -> Finding:
    folds = plan_cv_folds(e, data)
    name = f"protocols/{make_protocol_key(e, folds)}"
    if not results.is_committed(name):
        raise DataError(
            f"{results} has no finished protocol {e.split.protocol} of this experiment, which says what a model of all "
            "subjects is worth; run `eav protocol` with the same arguments first, or take what a search found "
            "(--search)"
        )
    found = read_cv_result(results, name)
    description = f"{e.split.protocol} of {format_count(len(found.fold_records), 'fold')}"
    return Finding(name, description, {}, "", found.predictions, _list_tested(results, name, found.fold_records))


def _list_tested(results: Store, name: str, fold_records: Sequence[dict[str, Any]]) -> tuple[ScoredModel, ...]:
    opened = [(f, open_recorded(results, f, results.format_path(name))) for f in fold_records]
    return tuple(ScoredModel(f["run"], checkpoint.split, tuple(f["test"])) for f, checkpoint in opened)


def _find_searched(e: Experiment, data: Dataset, results: Store) -> Finding:
    plans = plan_fold_searches(e, data)
    name = f"protocols/{make_nested_key(e, plans)}"
    if results.is_committed(name):
        found = read_cv_result(results, name)
        searches = [f["search"] for f in found.fold_records]
        changes, count = choose_changes([(s["changes"], s["inner_score"]) for s in searches])
        folds = format_count(len(found.fold_records), "fold")
        description = f"{e.split.protocol} of {folds}, each searched on inner folds of its own training subjects"
        choice = f"what the searches of {count} of {folds} chose, by their scores on inner folds"
        return Finding(
            name, description, changes, choice, found.predictions, _list_tested(results, name, found.fold_records)
        )
    study = plan_search(e, data).study_name
    best = read_best_record(results, study)
    if best is None:
        raise DataError(
            f"{results} has neither a finished protocol {e.split.protocol} with searches of this experiment nor a "
            f"finished search of its fold {e.split.index}; run `eav protocol --search` or `eav search` with the same "
            "arguments first"
        )
    checkpoint = open_recorded(results, best, results.format_path(f"searches/{study}"))
    predictions = predict_test_split(e, checkpoint, data).assign(fold=e.split.index)
    tested = (ScoredModel(checkpoint.key, checkpoint.split, checkpoint.split.test),)
    description = f"fold {e.split.index} of {e.split.protocol}, whose search chose the settings"
    choice = f"what the search {study} chose on inner folds of the other subjects"
    return Finding(f"searches/{study}", description, dict(best["changes"]), choice, predictions, tested)


def choose_changes(chosen: Sequence[tuple[dict[str, Any], float]]) -> tuple[dict[str, Any], int]:
    """Choose one of what several searches found: what most of them chose, and of equals what scored best.

    Args:
        chosen: The changes of each search, and their score on its inner folds: no score of a tested subject.

    Returns:
        The changes, and how many searches chose them.
    """
    counts = Counter(format_changes(changes) for changes, _ in chosen)
    best, _ = max(chosen, key=lambda one: (counts[format_changes(one[0])], one[1]))
    return best, counts[format_changes(best)]


def _describe_final_model(checkpoint: OpenedCheckpoint, data: Dataset, results: Store, finding: Finding) -> FinalModel:
    loaded = checkpoint.load()
    audit = audit_final_model(loaded, data.windows, finding.tested, read_encoder_train_ids(results, loaded))
    audit = replace(audit, commit_sha256=checkpoint.commit_sha256)
    if audit.failed:
        raise DataError(f"{checkpoint.path} fails the leak audit: {audit.first_failure}; train it again")
    expected, split = checkpoint.metrics["expected_result"], checkpoint.split
    subjects = {recording.split("/")[0] for recording in split.train}
    outcome = describe_outcomes({str(k): n for k, n in count_outcomes(check.outcome for check in audit.checks).items()})
    settings = "settings: those of the experiment"
    if finding.choice:
        settings = f"settings: {format_changes(finding.changes)}: {finding.choice}"
    n_trained = f"{format_count(len(split.train), 'recording')} of {format_count(len(subjects), 'subject')}"
    card = render_final_model_card(
        {
            "name": checkpoint.experiment.name,
            "trained_on": n_trained,
            "modalities": sorted(checkpoint.experiment.data.modalities),
            "classes": list(checkpoint.state.classes),
            "expected": expected,
            "expected_line": format_expected_result(expected),
            "settings": settings,
            "starting_weights": list_starting_weights(checkpoint.metrics.get(STARTING_WEIGHTS, {})),
            "audit": audit.summary,
            "audit_outcome": outcome,
            "audit_sha256": audit.sha256,
            "provenance": collect_provenance(checkpoint.experiment, data.index),
        }
    )
    card_name = f"results_pages/{checkpoint.key}/model_card.md"
    results.write(card_name, card.encode())
    lines = [
        *format_collapse_warnings(checkpoint.metrics),
        format_expected_result(expected),
        settings,
        f"trained on {n_trained}: no recording is left that could test it",
        f"leak audit: {outcome}",
        f"model card: {results.format_path(card_name)}",
        f"checkpoint: {checkpoint.path}",
        f"predict with it: eav predict {checkpoint.path} data.root=...",
    ]
    return FinalModel(checkpoint.path, results.format_path(card_name), expected, audit, "\n".join(lines))
