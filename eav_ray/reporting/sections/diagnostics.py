"""Sections of the results page on confusion, calibration, learning curves, signal quality and the worst subjects."""

from eav_ray.config import MODALITIES, select_worn_modalities
from eav_ray.data.modalities.registry import get_modality
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.evaluation.statistics import ALPHA, MIN_SUBJECTS
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import format_decimal, format_p_value, format_percent, format_points
from eav_ray.reporting.html import render_figure, render_note, render_section, render_table


def render_confusion(results: ResultsTree) -> str:
    confusions, classes = results["confusion"], results["classes"]
    main_source = list(confusions)[-1]
    lines = [[k, *map(str, row)] for k, row in zip(classes, confusions[main_source], strict=True)]
    caption = f"Share of each true class (rows) that was given each class (columns), percent: {', '.join(confusions)}."
    counts = render_table([f"{main_source}: true", *classes, "none"], lines)
    return render_section("Confusion", render_figure(figures.plot_confusion(confusions, classes), caption), counts)


def render_calibration(results: ResultsTree) -> str:
    calibrations = results["calibration"]
    scaled = any("scaled" in one for one in calibrations.values())
    head = ["source", "recordings", "ECE", "NLL", "Brier"]
    head += ["temperature", "ECE, scaled", "NLL, scaled", "Brier, scaled"] if scaled else []
    lines = []
    for source, one in calibrations.items():
        raw = one["raw"]
        line = [source, str(raw["count"]), *(format_decimal(raw[k]) for k in ("ece", "nll", "brier"))]
        if scaled:
            values = list(one["temperatures"].values())
            line += [
                f"{sum(values) / len(values):.2f}" if values else "–",
                *(format_decimal(one["scaled"][k]) for k in ("ece", "nll", "brier")),
            ]
        lines.append(line)
    explanation = (
        "A model that says 80 % should be right in 80 % of the cases. ECE is the mean gap over 10 bins of equal width; "
        "of few recordings it is above 0 even for a perfect model. "
    )
    explanation += results["calibration_note"]
    figure = render_figure(
        figures.plot_reliability(calibrations), "Confidence against accuracy of recordings; the diagonal is calibrated."
    )
    return render_section("Calibration", figure, render_table(head, lines), render_note(explanation))


def render_learning_curves(results: ResultsTree) -> str:
    parts, has_several_folds = [], len(results["histories"]) > 1
    for fold, histories in results["histories"].items():
        figure = render_figure(
            figures.plot_learning_curves(histories), f"Training loss by epoch of {', '.join(histories)}, fold {fold}."
        )
        parts.append(f"<details><summary>fold {fold}</summary>{figure}</details>" if has_several_folds else figure)
    return render_section("Learning curves", *parts)


def render_generalization_gap(results: ResultsTree) -> str:
    lines = [
        [
            source,
            format_percent(one["train"]),
            format_percent(one["test"]),
            format_points(None if None in (one["train"], one["test"]) else one["train"] - one["test"]),
            str(one["recordings"]),
        ]
        for source, one in results["generalization_gap"].items()
    ]
    head = ["source", "trained on, %", "tested, %", "gap, points", "recordings of training"]
    return render_section(
        "Training against test",
        render_table(head, lines),
        render_note("Accuracy per recording that has the source, evenly taken of training."),
    )


def render_worst_subjects(results: ResultsTree) -> str:
    sources = list(results["accuracy"]["sources"])
    head = ["subject", *sources, "most frequent mistakes", "measured of their signals"]
    lines = []
    for r in results["worst_subjects"]:
        mistakes = ", ".join(f"{k} ({v})" for k, v in r["mistakes"].items())
        measured = ", ".join(
            f"{k.replace('_', ' ')} {v:.3g}" for k, v in r.get("signal_quality", {}).items() if v is not None
        )
        lines.append([r["subject"], *(format_percent(r[s]) for s in sources), mistakes or "–", measured or "–"])
    return render_section("Worst people", render_table(head, lines, "left"))


def render_signal_quality(results: ResultsTree) -> str:
    lines, rendered_figures = [], []
    worn_columns = [c for m in select_worn_modalities(MODALITIES) for c in get_modality(m).quality_columns]
    for one in results["quality"]:
        rho = "–" if one["rho"] is None else f"{one['rho']:+.2f}"
        if one["rho"] is None:
            explanation = "too few people" if len(one["points"]) < MIN_SUBJECTS else "the same for everybody"
        else:
            explanation = "significant" if one["holm"] < ALPHA else "not significant"
        name = one["quality_measure"].replace("_", " ")
        lines.append(
            [
                name,
                one["source"],
                str(len(one["points"])),
                rho,
                format_p_value(one["p"]),
                format_p_value(one.get("holm")),
                explanation,
            ]
        )
        if one["rho"] is not None and one["quality_measure"] in worn_columns:
            caption = f"{name} against accuracy of {one['source']}, a dot a person."
            rendered_figures.append(render_figure(figures.plot_signal_quality(one, one["source"]), caption))
    head = ["measured", "accuracy of", "people", "Spearman", "p", "Holm", "verdict"]
    explanation = render_note("Means over each person's tested recordings, as preprocessing measured them.")
    return render_section(
        "Signal quality against accuracy", render_table(head, lines, "left"), explanation, *rendered_figures
    )


def render_band_power(results: ResultsTree) -> str:
    band_power = results["band_power"]
    figure = figures.plot_scalp_maps(band_power["values"], band_power["channels"])
    caption = "EEG band power by class: dB above or below each person's mean over classes, mean over people."
    if figure is None:
        return render_section(
            "Band power", render_note("The places of these channels are not known, so there is no map.")
        )
    return render_section("Band power", render_figure(figure, caption))
