"""Collect what the results store has beside a tested checkpoint: protocols, seeds, searches, results of other jobs."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, build_experiment, digest, to_dict
from eav_ray.data.io import parquet
from eav_ray.data.shards.dataset import Dataset
from eav_ray.errors import ConfigError
from eav_ray.evaluation import protocol_comparison
from eav_ray.evaluation.robustness import ROBUSTNESS_FORMAT
from eav_ray.pipelines.evaluate.ablation_plan import FORMAT as ABLATION_FORMAT
from eav_ray.pipelines.evaluate.audited_checkpoint import DAMAGED_FILE_ERRORS, AuditedCheckpoint, describe_damage
from eav_ray.pipelines.evaluate.encoder_plan import FOLDER as COMPARISONS_FOLDER
from eav_ray.pipelines.evaluate.encoder_plan import FORMAT as COMPARISON_FORMAT
from eav_ray.pipelines.evaluate.encoder_plan import RESULTS_FILE as COMPARISON_FILE
from eav_ray.pipelines.evaluate.page_scores import PageScores
from eav_ray.pipelines.train.cross_validation import read_cv_result
from eav_ray.reporting.html import Section
from eav_ray.reporting.sections import ablation, cost, encoders, robustness, search
from eav_ray.storage import Store, check_format
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.tuning.best import read_best_record

COMPARED_PROTOCOLS = ("paper", "within", "within_validated", "subject_kfold", "loso")


ResultsTree = dict[str, Any]


def collect_related(
    results: Store, audited: Sequence[AuditedCheckpoint], skipped_results: list[str]
) -> tuple[list[Section], ResultsTree]:
    """Collect sections and numbers of what other jobs made of these checkpoints: encoders beside them, an ablation, a
    robustness test.

    Args:
        skipped_results: Is given a line for each file that is damaged, here and below.
    """
    commits, keys = {one.checkpoint.commit_sha256 for one in audited}, {one.checkpoint.key for one in audited}
    found: ResultsTree = {"encoders": None, "ablation": None, "robustness": None}
    sections: dict[str, list[Section]] = {}
    for name in results.list_folders(COMPARISONS_FOLDER):
        path = f"{COMPARISONS_FOLDER}/{name}/{COMPARISON_FILE}"
        try:
            tree = _read_results_if_present(results, path, COMPARISON_FORMAT)
            known = {key for own in tree["runs"].values() for key in own} if tree else set()
            if tree and keys & known and _is_larger(tree, found["encoders"], "encoders"):
                sections["encoders"], found["encoders"] = encoders.build_encoder_sections(tree), tree
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, path, error))
    for name in results.list_folders("ablations"):
        path = f"ablations/{name}/results.json"
        try:
            tree = _read_results_if_present(results, path, ABLATION_FORMAT)
            if tree and keys & set(tree["runs"].values()) and _is_larger(tree, found["ablation"], "variants"):
                sections["ablation"] = [*ablation.build_ablation_sections(tree), *cost.build_cost_sections(tree)]
                found["ablation"] = tree
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, path, error))
    for name in results.list_folders("robustness"):
        path = f"robustness/{name}/results.json"
        try:
            tree = _read_results_if_present(results, path, ROBUSTNESS_FORMAT)
            if (
                tree
                and tree["checkpoint"]["commit_sha256"] in commits
                and _is_larger(tree, found["robustness"], "conditions")
            ):
                sections["robustness"] = robustness.build_robustness_sections(tree)
                found["robustness"] = tree
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, path, error))
    return [part for of_job in sections.values() for part in of_job], found


def _is_larger(tree: ResultsTree, other: ResultsTree | None, key: str) -> bool:
    return other is None or len(tree[key]) > len(other[key])


def _read_results_if_present(results: Store, name: str, number: int) -> ResultsTree | None:
    if not results.exists(name):
        return None
    tree = results.read_json(name)
    check_format(tree.get("format"), number, results.format_path(name), "run the job that wrote it again")
    return tree


def is_recorded_eav(experiment: Experiment, data: Dataset) -> bool:
    """Whether these are the people of the published results: EAV, as recorded, and not drawn in its layout."""
    return (
        experiment.data.dataset == "eav"
        and experiment.data.labels == "true"
        and not experiment.data.predicts_numbers
        and data.shards.read_json(data.index_file).get("is_real") is True
    )


def compare_protocols(
    experiment: Experiment,
    results: Store,
    data: Dataset,
    protocol: str,
    predictions: pd.DataFrame,
    scores: PageScores,
    skipped_results: list[str],
) -> ResultsTree:
    """Protocols side by side, seeds, and the published reference."""
    by_protocol, by_seed = collect_stored_protocols(results, experiment, data, skipped_results)
    by_protocol[protocol] = predictions
    # They divide alike, so what is kept of one is kept of the other; they differ in the unit of their score.
    for one, other in (("paper", "within"), ("within", "paper")):
        if one in by_protocol:
            by_protocol.setdefault(other, by_protocol[one])
    found: ResultsTree = {"protocols": None, "seeds": None, "reference": None}
    ordered = {
        p: by_protocol[p]
        for p in (*COMPARED_PROTOCOLS, *sorted(set(by_protocol) - set(COMPARED_PROTOCOLS)))
        if p in by_protocol
    }
    if len(ordered) > 1 or protocol in COMPARED_PROTOCOLS:
        base = next((p for p in ("loso", "subject_kfold", "within_validated", "within") if p in ordered), "")
        # A fold of the base alone adds nothing to it.
        others = {p: t for p, t in ordered.items() if not (p.startswith(f"{base}, fold ") and p.endswith(" alone"))}
        found["protocols"] = {
            "rows": scores.summarize_protocols(ordered),
            "inflation": scores.compare_protocols(others, base) if base else [],
            "missing": [p for p in COMPARED_PROTOCOLS if p not in ordered],
        }
    by_seed = {**by_seed.get(protocol, {}), experiment.seed: predictions}
    if len(by_seed) > 1:
        found["seeds"] = scores.summarize_seeds(by_seed)
    if is_recorded_eav(experiment, data):
        modalities, source = scores.modalities, "paper" if "paper" in ordered else protocol
        ours = protocol_comparison.compute_published_unit_accuracy(ordered[source], modalities)
        published_rows = ours[ours.index.isin(protocol_comparison.read_published_accuracy().index)]
        if len(published_rows):
            reference_note = f"Ours is {source}, per frame where a source sees video, else per window."
            if source.split(",")[0] not in ("paper", "within"):  # a fold of theirs is of the same protocol
                reference_note += (
                    " That is another protocol: only split.protocol=paper asks what the published number answers."
                )
            rows = protocol_comparison.compare_with_published(published_rows, modalities)
            found["reference"] = {"source": protocol_comparison.PUBLISHED_SOURCE, "note": reference_note, "rows": rows}
    return found


def collect_stored_protocols(
    results: Store, experiment: Experiment, data: Dataset, skipped_results: list[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[int, pd.DataFrame]]]:
    """Predictions of whole protocols that the results store keeps of this experiment, and of others of its seeds."""
    wanted_identity, known = _compute_protocol_identity(experiment), set(data.windows.ids["id"])
    by_protocol: dict[str, pd.DataFrame] = {}
    by_seed: dict[str, dict[int, pd.DataFrame]] = {}
    for name in results.list_folders("protocols"):
        prefix = f"protocols/{name}"
        if not results.is_committed(prefix):
            continue
        try:
            stored = build_experiment(results.read_json(f"{prefix}/experiment.json"), source=prefix)
            if _compute_protocol_identity(stored) != wanted_identity:
                continue
            kept = read_cv_result(results, prefix)
            if _read_data_digest(results, kept.fold_records[0]["checkpoint"]) not in ("", data.digest):
                continue
            table = kept.predictions
            if not set(table["subject"] + "/" + table["recording"]) <= known:
                continue
        except ConfigError:  # of an earlier version, which had fewer keys, or of one that had others
            continue
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, prefix, error))
            continue
        label = _describe_protocol(stored, experiment, searched="-nested-" in name)
        by_seed.setdefault(label, {})[stored.seed] = table
        if stored.seed == experiment.seed:
            by_protocol[label] = table
    return by_protocol, by_seed


def _read_data_digest(results: Store, prefix: str) -> str:
    """Read the digest of the shards that a checkpoint was trained on; empty where it was deleted since."""
    return OpenedCheckpoint(results, prefix).state.data_digest if results.is_committed(prefix) else ""


def _describe_protocol(stored: Experiment, experiment: Experiment, *, searched: bool) -> str:
    """What a protocol is called beside one's own: equal only where it divides, and searches, alike."""
    label = stored.split.protocol + (", searched" if searched else "")
    if stored.split.protocol == "subject_kfold" and (stored.split.n_folds, stored.split.seed) != (
        experiment.split.n_folds,
        experiment.split.seed,
    ):
        label += f", of {stored.split.n_folds}, split seed {stored.split.seed}"
    if searched and (stored.search, stored.split.n_inner_folds) != (experiment.search, experiment.split.n_inner_folds):
        label += ", another search"
    settings = stored.list_transductive_settings()
    if (stored.split.access, settings) != (experiment.split.access, experiment.list_transductive_settings()):
        label += f", {stored.split.access}{'' if settings or stored.split.access == 'source_only' else ' without use'}"
    return label


def _compute_protocol_identity(e: Experiment) -> str:
    """Of what makes two protocols comparable: all but how they are divided, seeded, computed and kept, and what they
    know of tested subjects."""
    ignored_sections = ("split", "seed", "runtime", "store", "search", "name")
    tree = {k: v for k, v in to_dict(e).items() if k not in ignored_sections}
    tree["model"] = {
        m: {k: v for k, v in section.items() if k != "subject_normalisation"} for m, section in tree["model"].items()
    }
    tree["data"] = {k: v for k, v in tree["data"].items() if k != "root"}
    tree["preprocessing"] = {
        k: v for k, v in tree["preprocessing"].items() if k not in ("recordings_per_shard", "file_timeout_s")
    }
    return digest(tree)


def collect_searches(
    results: Store,
    audited: Sequence[AuditedCheckpoint],
    experiment: Experiment,
    scores: PageScores,
    skipped_results: list[str],
) -> tuple[list[Section], list[ResultsTree]]:
    """The searches that these checkpoints are the winners of: sections of the first, and what each said."""
    keys = {one.checkpoint.key for one in audited}
    sections: list[Section] = []
    searches: list[ResultsTree] = []
    for study in results.list_folders("searches"):
        try:
            best = read_best_record(results, study)
            if best is None or str(best.get("checkpoint", "")).split("/")[1:2] not in [[k] for k in keys]:
                continue
            name = f"searches/{study}/candidates.parquet"
            candidates = parquet.decode_dataframe(results.read(name), results.format_path(name))
            sections = sections or search.build_search_sections(candidates, {}, experiment.search)
            n_candidates = int(candidates["candidate"].nunique())
        except DAMAGED_FILE_ERRORS as error:
            skipped_results.append(describe_damage(results, f"searches/{study}", error))
            continue
        test_score = scores.score_search(
            [one.evaluated.predictions for one in audited if one.checkpoint.key in str(best)]
        )
        searches.append(
            {
                "study": study,
                "candidates": n_candidates,
                "inner_score": best.get("value"),
                "test": test_score,
                "changes": best.get("changes"),
                "candidate_rows": candidates.to_dict("records"),
            }
        )
    return sections, searches
