"""Sections of the results page on accuracy: sources, subjects, paired comparisons, seeds."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import PUBLISHED_LABEL, format_interval, format_p_value, format_percent, format_points
from eav_ray.reporting.html import render_figure, render_note, render_section, render_table


def render_accuracy(results: ResultsTree) -> str:
    accuracy = results["accuracy"]
    head = ["source", "mean", "SD over people", "95 % interval", "balanced", "95 % interval", "macro-F1"]
    head += ["per frame", "per window", "per recording"]
    rows = [
        [
            source,
            format_percent(one["mean"]),
            format_percent(one["sd"]),
            format_interval(one["interval"]),
            format_percent(one["balanced"]),
            format_interval(one["balanced_interval"]),
            format_percent(one["macro_f1"]),
            *(format_percent(one[unit]) for unit in ("frame", "window", "recording")),
        ]
        for source, one in accuracy["sources"].items()
    ]
    chance = accuracy["chance"]
    explanation = (
        f"Percent. Mean and SD over people; intervals by a bootstrap over {accuracy['n_subjects']} people and their "
        f"{accuracy['recordings']} recordings, never over windows. Chance is {format_percent(chance['level'])}; "
        f"guessing stays between {format_percent(chance['low'])} and {format_percent(chance['high'])} in "
        f"{100 * chance['band']:.1f} % of the cases (binomial over recordings)."
    )
    if accuracy["unequal"]:
        explanation += (
            " Classes are unequal, so naming the largest one beats chance: read the balanced columns, in which "
            f"guessing stays between {format_percent(chance['balanced_low'])} and "
            f"{format_percent(chance['balanced_high'])} as often."
        )
    missing_predictions = [
        f"{one['n_without_prediction']} of {s}" for s, one in accuracy["sources"].items() if one["n_without_prediction"]
    ]
    explanation += (
        f" Recordings in which a source has nothing to say count as wrong: {', '.join(missing_predictions)}."
        if missing_predictions
        else ""
    )
    within_chance = [s for s, one in accuracy["sources"].items() if one["inside_chance"]]
    explanation += f" Inside the band of chance: {', '.join(within_chance)}." if within_chance else ""
    if accuracy.get("oracle") is not None:
        explanation += (
            f" An oracle that always heeds a right modality would reach {format_percent(accuracy['oracle'])}."
        )
    return render_section("Accuracy", render_table(head, rows), render_note(explanation))


def render_subjects(results: ResultsTree) -> str:
    rows = results["subjects"]
    sources = [s for s in results["accuracy"]["sources"]]
    has_reference, main_source = any("reference" in r for r in rows), sources[-1]
    # What the bars are: one modality is held against the same one.
    column = figures.choose_published_column(sources)
    head = ["subject", "recordings", *sources, *([f"{PUBLISHED_LABEL} {column}"] if has_reference else [])]
    lines = [
        [r["subject"], str(r["recordings"]), *(format_percent(r[s]) for s in sources)]
        + ([format_percent(r["reference"][column]) if "reference" in r else "–"] if has_reference else [])
        for r in rows
    ]
    caption = (
        f"{main_source} of {len(rows)} people, from {format_percent(rows[0][main_source])} to "
        f"{format_percent(rows[-1][main_source])} %."
    )
    caption += f" {PUBLISHED_LABEL.capitalize()}: per frame, under the protocol paper." if has_reference else ""
    figure = figures.plot_subjects(rows, sources, results["chance_of_subject"], published=has_reference)
    return render_section("People", render_figure(figure, caption), render_table(head, lines))


def render_comparisons(results: ResultsTree) -> str:
    parts = []
    for name, explanation in (
        ("fusion", "The fusion against the rest"),
        ("modalities", "Modalities against each other"),
    ):
        lines = [
            [f"{c['ours']} – {c['other']}", str(c["n_subjects"]), format_points(c["difference"])]
            + [
                f"{format_points(c['interval'][0])} to {format_points(c['interval'][1])}",
                format_p_value(c["p"]),
                format_p_value(c["holm"]),
            ]
            + [f"{c['effect']:+.2f}", c["verdict"]]
            for c in results["comparisons"][name]
        ]
        if lines:
            head = ["difference", "people", "points", "95 % interval", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
            parts += [f"<h3>{explanation}</h3>", render_table(head, lines, "left")]
    if not parts:
        return ""
    explanation = (
        "Paired over people: Wilcoxon's signed-rank test, two-sided, Holm's correction within each table. The best "
        "single modality per subject is chosen with its test labels, so it is an upper bound that no honest choice "
        "reaches."
    )
    return render_section("Comparisons", *parts, render_note(explanation))


def render_seeds(results: ResultsTree) -> str:
    seeds = results["seeds"]
    lines = [
        [source, *(format_percent(one["means"][str(s)]) for s in seeds["seeds"]), format_percent(one["sd"])]
        for source, one in seeds["sources"].items()
    ]
    explanation = "Trainings that differ by their seed alone. A difference below this spread is noise."
    return render_section(
        "Seeds: the noise floor",
        render_table(["source", *map(str, seeds["seeds"]), "SD"], lines),
        render_note(explanation),
    )
