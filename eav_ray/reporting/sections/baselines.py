"""Section of the results page on baselines: classifiers on features, which no encoder is compared with as its equal."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import format_interval, format_percent
from eav_ray.reporting.html import Column, Note, Section, build_table

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
