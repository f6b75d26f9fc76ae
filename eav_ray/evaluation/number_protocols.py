"""Whole protocols of predicted numbers against each other, and against themselves with another seed."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eav_ray.evaluation.comparisons import compare_differences, comparison_to_dict
from eav_ray.evaluation.number_scores import average_numbers, list_number_sources, score_subjects, select_pairs
from eav_ray.evaluation.number_summary import summarize_numbers
from eav_ray.evaluation.results_tree import ResultsTree


def summarize_number_protocols(
    tables: Mapping[str, pd.DataFrame], modalities: Sequence[str], targets: Sequence[str]
) -> list[ResultsTree]:
    """Summarize protocols side by side: an entry a protocol, target and source.

    Args:
        tables: Protocol -> predictions of its test recordings.
    """
    rows = []
    for name, windows in tables.items():
        summary = summarize_numbers(windows, modalities, targets)
        for target, one in summary["targets"].items():
            for source in list_number_sources(modalities):
                scores = one["sources"][source]
                own = scores[one["level"]]
                rows.append(
                    {
                        "protocol": name,
                        "n_subjects": summary["n_subjects"],
                        "recordings": summary["recordings"],
                        "target": target,
                        "source": source,
                        "level": one["level"],
                        "n_counted": own["n_subjects"],
                        "ccc": own["ccc"]["mean"],
                        "pearson": own["pearson"]["mean"],
                        "rmse": scores["rmse"]["mean"],
                    }
                )
    return rows


def compare_number_protocols(
    tables: Mapping[str, pd.DataFrame], modalities: Sequence[str], targets: Sequence[str], base: str
) -> list[ResultsTree]:
    """Compare the CCC of the main source under each protocol with that under `base`, paired over the people of both.

    Of people whose targets differ under both; Holm's correction is for all protocols and targets.
    """
    source = list_number_sources(modalities)[-1]
    means = {name: average_numbers(windows, [source]) for name, windows in tables.items()}
    rows, differences = [], []
    for k, target in enumerate(targets):
        scores = {name: score_subjects(select_pairs(table, source, k)) for name, table in means.items()}
        of_base = scores[base].loc[scores[base]["counts"], "ccc"]
        for name, own in scores.items():
            gains = (own.loc[own["counts"], "ccc"] - of_base).reindex(own.index.intersection(of_base.index)).dropna()
            if name != base and len(gains):
                rows.append({"protocol": name, "base": base, "target": target, "source": source})
                differences.append((name, base, gains.to_numpy(float)))
    tests = compare_differences(differences)
    return [row | comparison_to_dict(test) for row, test in zip(rows, tests, strict=True)]


def summarize_number_seeds(
    tables: Mapping[int, pd.DataFrame], modalities: Sequence[str], targets: Sequence[str]
) -> ResultsTree:
    """Summarize how far apart trainings lie that differ by nothing but the seed: CCC and RMSE by target and source.

    Args:
        tables: Seed -> predictions of equal test recordings.
    """
    summaries = {seed: summarize_numbers(windows, modalities, targets)["targets"] for seed, windows in tables.items()}
    rows = []
    for target in targets:
        for source in list_number_sources(modalities):
            for measure in ("ccc", "rmse"):
                means = {}
                for seed, summary in summaries.items():
                    scores, level = summary[target]["sources"][source], summary[target]["level"]
                    means[str(seed)] = (scores["rmse"] if measure == "rmse" else scores[level]["ccc"])["mean"]
                sd = float(np.std(list(means.values()), ddof=1))
                rows.append({"target": target, "source": source, "measure": measure, "means": means, "sd": sd})
    return {"seeds": sorted(tables), "rows": rows}
