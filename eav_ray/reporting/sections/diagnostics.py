"""Sections of the results page on confusion, calibration, learning curves, signal quality and the worst subjects."""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from eav_ray.config import MODALITIES, select_worn_modalities
from eav_ray.data.modalities.registry import get_modality
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import format_percent, format_points
from eav_ray.reporting.html import Column, Drawing, Folded, Note, Section, Table, build_table

ERROR_COLUMNS = [("ECE", "ece", ".3f"), ("NLL", "nll", ".3f"), ("Brier", "brier", ".3f")]
QUALITY_TEST_COLUMNS: list[Column] = [
    ("people", "n_subjects", ""),
    ("Spearman", "rho", "+.2f"),
    ("p", "p", ".3g"),
    ("Holm", "holm", ".3g"),
    ("verdict", "verdict", ""),
]


def build_confusion(results: ResultsTree) -> Section:
    confusions, classes = results["confusion"], results["classes"]
    main_source = list(confusions)[-1]
    rows = [[k, *map(str, row)] for k, row in zip(classes, confusions[main_source], strict=True)]
    caption = f"Share of each true class (rows) that was given each class (columns), percent: {', '.join(confusions)}."
    figure = Drawing(figures.plot_confusion(confusions, classes), caption)
    return Section("Confusion", [figure, Table([f"{main_source}: true", *classes, "none"], rows)])


def build_calibration(results: ResultsTree) -> Section:
    calibrations = results["calibration"]
    columns = [("source", "source", ""), ("recordings", "count", ""), *ERROR_COLUMNS]
    if any("scaled" in one for one in calibrations.values()):
        columns.append(("temperature", "temperature", ".2f"))
        columns += [(f"{heading}, scaled", f"scaled_{key}", form) for heading, key, form in ERROR_COLUMNS]
    rows = []
    for source, one in calibrations.items():
        temperatures = list(one.get("temperatures", {}).values())
        temperature = sum(temperatures) / len(temperatures) if temperatures else None
        scaled = {f"scaled_{key}": value for key, value in one.get("scaled", {}).items()}
        rows.append({"source": source, "temperature": temperature, **one["raw"], **scaled})
    figure = figures.plot_reliability(calibrations)
    note = (
        "A model that says 80 % should be right in 80 % of the cases. ECE is the mean gap over 10 bins of equal width; "
        f"of few recordings it is above 0 even for a perfect model. {results['calibration_note']}"
    )
    drawing = Drawing(figure, "Confidence against accuracy of recordings; the diagonal is calibrated.")
    return Section("Calibration", [drawing, build_table(rows, columns), Note(note)])


def build_learning_curves(results: ResultsTree) -> Section:
    return build_curve_section(results["histories"], figures.plot_learning_curves)


def build_curve_section(histories_by_fold: ResultsTree, plot: Callable[[ResultsTree], Figure]) -> Section:
    """Build the curves of each training, folded where there are several folds."""
    drawings = {
        fold: Drawing(plot(histories), f"Training loss by epoch of {', '.join(histories)}, fold {fold}.")
        for fold, histories in histories_by_fold.items()
    }
    if len(drawings) == 1:
        return Section("Learning curves", list(drawings.values()))
    return Section("Learning curves", [Folded(f"fold {fold}", drawing) for fold, drawing in drawings.items()])


def build_generalization_gap(results: ResultsTree) -> Section:
    rows = [
        {"source": s, "gap": None if None in (one["train"], one["test"]) else one["train"] - one["test"], **one}
        for s, one in results["generalization_gap"].items()
    ]
    columns = [
        ("source", "source", ""),
        ("trained on, %", "train", format_percent),
        ("tested, %", "test", format_percent),
        ("gap, points", "gap", format_points),
        ("recordings of training", "recordings", ""),
    ]
    note = Note("Accuracy per recording that has the source, evenly taken of training.")
    return Section("Training against test", [build_table(rows, columns), note])


def build_worst_subjects(results: ResultsTree) -> Section:
    columns = [
        ("subject", "subject", ""),
        *((s, s, format_percent) for s in results["accuracy"]["sources"]),
        ("most frequent mistakes", "mistakes", _list_mistakes),
        ("measured of their signals", "signal_quality", list_measures),
    ]
    return Section("Worst people", [build_table(results["worst_subjects"], columns, left=True)])


def _list_mistakes(mistakes: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in mistakes.items()) or "–"


def list_measures(measures: dict[str, float | None] | None) -> str:
    """List what was measured of one person's signals."""
    known = {name: value for name, value in (measures or {}).items() if value is not None}
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in known.items()) or "–"


def build_signal_quality(results: ResultsTree) -> Section:
    columns: list[Column] = [("measured", "name", ""), ("accuracy of", "source", "")]
    described = {"score": "accuracy", "axis": "% of recordings"}
    rows = [one | described | {"described": one["source"]} for one in results["quality"]]
    return build_quality_section("Signal quality against accuracy", rows, columns, scale=100)


def build_quality_section(
    title: str, rows: Sequence[ResultsTree], columns: Sequence[Column], *, scale: float = 1.0, hint: str = ""
) -> Section:
    """Build the correlations of scores with what preprocessing measured, those of worn sensors drawn.

    Args:
        rows: Correlations, each with `score`, what was correlated, `described`, what it is of, and `axis`, what it is
            where it is drawn.
        columns: Of the table, before those of the test.
        scale: Of scores where they are drawn.
        hint: How to read the scores.
    """
    worn_columns = [c for m in select_worn_modalities(MODALITIES) for c in get_modality(m).quality_columns]
    named, drawings = [], []
    for one in rows:
        name = one["quality_measure"].replace("_", " ")
        named.append(one | {"name": name, "n_subjects": len(one["points"])})
        if one["rho"] is not None and one["quality_measure"] in worn_columns:
            caption = f"{name} against {one['score']} of {one['described']}, a dot a person."
            drawings.append(Drawing(figures.plot_signal_quality(one, one["axis"], scale), caption))
    note = Note(
        "Means over each person's tested recordings, as preprocessing measured them; p by permutation of people."
        f"{hint and f' {hint}'}"
    )
    table = build_table(named, [*columns, *QUALITY_TEST_COLUMNS], left=True)
    return Section(title, [table, note, *drawings])


def build_band_power(results: ResultsTree) -> Section:
    figure = figures.plot_scalp_maps(results["band_power"]["values"], results["band_power"]["channels"])
    caption = "EEG band power by class: dB above or below each person's mean over classes, mean over people."
    no_map = Note("The places of these channels are not known, so there is no map.")
    return Section("Band power", [no_map if figure is None else Drawing(figure, caption)])
