"""Section of the results page on baselines: classifiers on features, which no encoder is compared with as its equal."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import TEST_COLUMNS, format_interval, format_percent
from eav_ray.reporting.html import Column, Note, Part, Section, build_table
from eav_ray.reporting.number_tables import format_correlation, format_error

BASELINE_COLUMNS: list[Column] = [
    ("", "title", ""),
    ("balanced accuracy", "recording_balanced_accuracy", format_percent),
    ("SD over people", "recording_balanced_accuracy_sd", format_percent),
    ("95 % interval", "recording_balanced_accuracy_interval", format_interval),
    ("accuracy", "recording_accuracy", format_percent),
    ("SD", "recording_accuracy_sd", format_percent),
    ("balanced, per window", "window_balanced_accuracy", format_percent),
    ("SD", "window_balanced_accuracy_sd", format_percent),
    ("people", "n_subjects", ""),
    ("recordings", "recordings", ""),
]

NUMBER_BASELINE_COLUMNS: list[Column] = [
    ("target", "target", ""),
    ("", "title", ""),
    ("CCC", "ccc", format_correlation),
    ("95 % interval", "ccc_interval", lambda pair: format_interval(pair, format_correlation)),
    ("Pearson", "pearson", format_correlation),
    ("RMSE", "rmse", format_error),
    ("95 % interval", "rmse_interval", lambda pair: format_interval(pair, format_error)),
    ("people", "n_counted", ""),
    ("recordings", "recordings", ""),
]


def build_baselines(results: ResultsTree) -> Section:
    """Build the table of baselines of the same people, split and access."""
    found = results["baselines"]
    note = Note(
        "Percent, mean over people; per recording where nothing else is said; intervals by Student's t over people. "
        "Classifiers on features that nothing was "
        f"trained for, on the same recordings, split and access ({found['access']}). Their parameters were chosen on "
        "inner folds of the training people where the protocol has any. They are no encoders and no source of the "
        "other tables: they are what an encoder has to beat to be worth its training."
    )
    return Section("Baselines", [build_table(found["rows"], BASELINE_COLUMNS), note])


def build_number_baselines(results: ResultsTree) -> Section:
    """Build the table of baselines where numbers are predicted, and the fusion against each of them."""
    found = results["baselines"]
    note = Note(
        "CCC and Pearson as in the table of scores. Regressions on features that nothing was trained for, on the same "
        f"recordings, split and access ({found['access']}). Their parameters were chosen on inner folds of the "
        "training people where the protocol has any. They are no encoders and no source of the other tables: they are "
        "what an encoder has to beat to be worth its training."
    )
    titles = {row["source"]: row["title"] for row in found["rows"]}
    rows = [
        one
        | {"title": titles.get(one["other"], one["other"]), "score": "CCC" if one["measure"] == "ccc" else "RMSE"}
        | {"gain": f"{one['difference']:+.3g}", "bounds": format_interval(one["interval"], "+.3g")}
        for one in found["comparisons"]
        if one["difference"] is not None
    ]
    columns: list[Column] = [
        ("target", "target", ""),
        ("against", "title", ""),
        ("people", "n_subjects", ""),
        ("by", "score", ""),
        ("better by", "gain", ""),
        ("95 % interval", "bounds", ""),
        *TEST_COLUMNS,
    ]
    parts: list[Part] = [build_table(found["rows"], NUMBER_BASELINE_COLUMNS), note]
    if rows:
        parts.append(build_table(rows, columns, left=True, title=f"{rows[0]['ours']} against the baselines"))
    return Section("Baselines", parts)
