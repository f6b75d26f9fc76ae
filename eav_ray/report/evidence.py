"""The page that says what a result is worth: one HTML file, drawn from `results.json` and nothing else."""

import html
import json
from collections.abc import Sequence
from typing import Any

import matplotlib

from eav_ray.report import figures
from eav_ray.report.page import render_document, render_figure, render_note, render_section, render_table
from eav_ray.report.statistics import ALPHA, MIN_SUBJECTS
from eav_ray.report.table import format_value

ResultsTree = dict[str, Any]
RESULTS_FORMAT = 1  # of results.json
PUBLISHED_LABEL = "published"


def render_results_page(results: ResultsTree, extra_sections: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        results: What `runtime.evidence` gathers, as it is in `results.json`.
        extra: Sections of what other commands measured: ablation, stress, cost, a search.
    """
    matplotlib.use("agg")
    parts = [_render_headline(results), render_accuracy(results)]
    for name, render in (
        ("protocols", render_protocols),
        ("reference", render_reference),
        ("people", render_subjects),
        ("comparisons", render_comparisons),
        ("seeds", render_seeds),
        ("confusion", render_confusion),
        ("weights", render_modality_weights),
        ("collapse", render_modality_collapse),
        ("calibration", render_calibration),
        ("histories", render_learning_curves),
        ("gap", render_generalization_gap),
        ("worst", render_worst_subjects),
        ("quality", render_signal_quality),
        ("bands", render_band_power),
        ("search", render_search_summary),
    ):
        if results.get(name):
            parts.append(render(results))
    parts += [*extra_sections, render_leak_audit(results), *render_skipped_results(results), render_provenance(results)]
    return render_document(results["title"], parts, contents=True)


def format_percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def format_interval(pair: Sequence[float | None]) -> str:
    return f"{format_percent(pair[0])} to {format_percent(pair[1])}"


def format_points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f}"


def format_p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _render_headline(results: ResultsTree) -> str:
    accuracy = results["accuracy"]
    main_source = list(accuracy["sources"])[-1]
    one = accuracy["sources"][main_source]
    kind = "balanced" if accuracy["unequal"] else "mean"
    low_high = one["balanced_interval" if accuracy["unequal"] else "interval"]
    name = "balanced accuracy" if accuracy["unequal"] else "accuracy"
    chance = accuracy["chance"]
    headline = (
        f"{main_source}: {name} {format_percent(one[kind])} % (95 % {format_interval(low_high)}) over {accuracy['recordings']} recordings of"
        f" {accuracy['people']} people {results['apart']}; chance {format_percent(chance['level'])} %"
    )
    if one["inside_chance"]:
        headline += "; this is inside the band of chance"
    return (
        f"<h1>{html.escape(results['title'])}</h1><p><strong>{html.escape(headline)}.</strong></p>"
        f"<p>{html.escape(results['about'])}</p>"
    )


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
        f"Percent. Mean and SD over people; intervals by a bootstrap over {accuracy['people']} people and their "
        f"{accuracy['recordings']} recordings, never over windows. Chance is {format_percent(chance['level'])}; guessing "
        f"stays between {format_percent(chance['low'])} and {format_percent(chance['high'])} in {100 * chance['band']:.1f} % of the "
        "cases (binomial over recordings)."
    )
    if accuracy["unequal"]:
        explanation += (
            " Classes are unequal, so naming the largest one beats chance: read the balanced columns, in which "
            f"guessing stays between {format_percent(chance['balanced_low'])} and {format_percent(chance['balanced_high'])} as often."
        )
    missing_predictions = [f"{one['silent']} of {s}" for s, one in accuracy["sources"].items() if one["silent"]]
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


def render_protocols(results: ResultsTree) -> str:
    protocols = results["protocols"]
    rows = [
        [row["protocol"], str(row["people"]), str(row["recordings"]), source]
        + [format_percent(one[unit]) for unit in ("frame", "window", "recording")]
        + [format_percent(one["sd"])]
        for row in protocols["rows"]
        for source, one in row["sources"].items()
    ]
    head = ["protocol", "people", "recordings", "source", "per frame", "per window", "per recording", "SD over people"]
    parts = [
        render_note(
            "The same experiment under each protocol that was run, percent, mean over people. paper and within test "
            "people of whom other recordings were trained on; subject_kfold and loso test strangers. What a protocol "
            "adds is no better model: it is another question."
        ),
        render_figure(
            figures.plot_protocols(protocols["rows"]),
            "Accuracy of each source under each protocol, by unit of scoring.",
        ),
        render_table(head, rows),
    ]
    if protocols["inflation"]:
        lines = [
            [f"{one['protocol']}, per {one['unit']}", one["base"], one["source"], str(one["people"])]
            + [format_points(one["difference"])]
            + [format_p_value(one["p"]), format_p_value(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
            for one in protocols["inflation"]
        ]
        head = ["protocol", "against", "source", "people", "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
        parts += ["<h3>What a protocol adds</h3>", render_table(head, lines, "left")]
    if protocols["missing"]:
        parts.append(
            render_note(
                f"Not run yet: {', '.join(protocols['missing'])}; jobs/protocol.py with fold.protocol runs them."
            )
        )
    return render_section("Protocols side by side", *parts)


def render_reference(results: ResultsTree) -> str:
    lines = [
        [
            one["ours"],
            str(one["people"]),
            format_percent(one["mean"]),
            format_percent(one["published"]),
            format_points(one["difference"]),
        ]
        + [format_p_value(one["p"]), format_p_value(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
        for one in results["reference"]["rows"]
    ]
    head = ["source", "people", "ours", PUBLISHED_LABEL, "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
    explanation = f"Published: {results['reference']['source']}. Paired over people. {results['reference']['note']}"
    return render_section(
        "Against the published reference", render_table(head, lines, "left"), render_note(explanation)
    )


def render_subjects(results: ResultsTree) -> str:
    rows = results["people"]
    sources = [s for s in results["accuracy"]["sources"]]
    has_reference, main_source = any("reference" in r for r in rows), sources[-1]
    # What the bars are: one modality is held against the same one.
    column = figures.choose_published_column(sources)
    head = ["person", "recordings", *sources, *([f"{PUBLISHED_LABEL} {column}"] if has_reference else [])]
    lines = [
        [r["subject"], str(r["recordings"]), *(format_percent(r[s]) for s in sources)]
        + ([format_percent(r["reference"][column]) if "reference" in r else "–"] if has_reference else [])
        for r in rows
    ]
    caption = f"{main_source} of {len(rows)} people, from {format_percent(rows[0][main_source])} to {format_percent(rows[-1][main_source])} %."
    caption += f" {PUBLISHED_LABEL.capitalize()}: per frame, under the protocol paper." if has_reference else ""
    figure = figures.plot_subjects(rows, sources, results["chance_of_person"], published=has_reference)
    return render_section("People", render_figure(figure, caption), render_table(head, lines))


def render_comparisons(results: ResultsTree) -> str:
    parts = []
    for name, explanation in (
        ("fusion", "The fusion against the rest"),
        ("modalities", "Modalities against each other"),
    ):
        lines = [
            [f"{c['ours']} – {c['other']}", str(c["people"]), format_points(c["difference"])]
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
        "single per person is chosen with its test labels, so it is an upper bound that no honest choice reaches."
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


def render_confusion(results: ResultsTree) -> str:
    confusions, classes = results["confusion"], results["classes"]
    main_source = list(confusions)[-1]
    lines = [[k, *map(str, row)] for k, row in zip(classes, confusions[main_source], strict=True)]
    caption = f"Share of each true class (rows) that was given each class (columns), percent: {', '.join(confusions)}."
    counts = render_table([f"{main_source}: true", *classes, "none"], lines)
    return render_section("Confusion", render_figure(figures.plot_confusion(confusions, classes), caption), counts)


def render_modality_weights(results: ResultsTree) -> str:
    weights, modalities = results["weights"], results["modalities"]
    parts = [
        render_figure(
            figures.plot_modality_weights(weights, modalities),
            "Mean modality weights by class: as attended, and after division by each modality's number of tokens.",
        )
    ]
    head = ["class", *modalities, *(f"{m}, per token" for m in modalities)]
    by_class = weights["weight"]["by_class"]
    lines = [
        [
            k,
            *(format_decimal(row[m]) for m in modalities),
            *(format_decimal(weights["corrected"]["by_class"][k][m]) for m in modalities),
        ]
        for k, row in by_class.items()
    ]
    parts.append(render_table(head, lines))
    head[0] = "person"
    by_subject = weights["weight"]["by_person"]
    lines = [
        [
            k,
            *(format_decimal(row[m]) for m in modalities),
            *(format_decimal(weights["corrected"]["by_person"][k][m]) for m in modalities),
        ]
        for k, row in by_subject.items()
    ]
    parts.append(f"<details><summary>By person</summary>{render_table(head, lines)}</details>")
    tests = [
        f"{m}: p = {format_p_value(one['p'])}, {one['people']} people" for m, one in weights["classes_differ"].items()
    ]
    if tests:
        parts.append(
            render_note(f"Do weights differ between classes? Friedman's test over people: {'; '.join(tests)}.")
        )
    parts.append(
        render_note("A weight says where attention went, not what the answer rests on: see ablation and stress.")
    )
    return render_section("Modality weights", *parts)


def render_modality_collapse(results: ResultsTree) -> str:
    lines = [[str(one["fold"]), one["check"], one["text"]] for one in results["collapse"]]
    explanation = render_note(
        "What the check of each trained fusion found: a modality that is not used, or has all the weight."
    )
    return render_section("Collapse", render_table(["fold", "check", "finding"], lines, "left"), explanation)


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


def format_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
        for source, one in results["gap"].items()
    ]
    head = ["source", "trained on, %", "tested, %", "gap, points", "recordings of training"]
    return render_section(
        "Training against test",
        render_table(head, lines),
        render_note("Accuracy per recording that has the source, evenly taken of training."),
    )


def render_worst_subjects(results: ResultsTree) -> str:
    sources = list(results["accuracy"]["sources"])
    head = ["person", *sources, "most frequent mistakes", "measured of their signals"]
    lines = []
    for r in results["worst"]:
        mistakes = ", ".join(f"{k} ({v})" for k, v in r["mistakes"].items())
        measured = ", ".join(
            f"{k.replace('_', ' ')} {v:.3g}" for k, v in r.get("measured", {}).items() if v is not None
        )
        lines.append([r["subject"], *(format_percent(r[s]) for s in sources), mistakes or "–", measured or "–"])
    return render_section("Worst people", render_table(head, lines, "left"))


def render_signal_quality(results: ResultsTree) -> str:
    lines, rendered_figures = [], []
    for one in results["quality"]:
        rho = "–" if one["rho"] is None else f"{one['rho']:+.2f}"
        if one["rho"] is None:
            explanation = "too few people" if len(one["points"]) < MIN_SUBJECTS else "the same for everybody"
        else:
            explanation = "significant" if one["holm"] < ALPHA else "not significant"
        name = one["measured"].replace("_", " ")
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
        if one["rho"] is not None and one["measured"].startswith("eeg"):
            caption = f"{name} against accuracy of {one['source']}, a dot a person."
            rendered_figures.append(render_figure(figures.plot_signal_quality(one, one["source"]), caption))
    head = ["measured", "accuracy of", "people", "Spearman", "p", "Holm", "verdict"]
    explanation = render_note("Means over each person's tested recordings, as preprocessing measured them.")
    return render_section(
        "Signal quality against accuracy", render_table(head, lines, "left"), explanation, *rendered_figures
    )


def render_band_power(results: ResultsTree) -> str:
    band_power = results["bands"]
    figure = figures.plot_scalp_maps(band_power["values"], band_power["channels"])
    caption = "EEG band power by class: dB above or below each person's mean over classes, mean over people."
    if figure is None:
        return render_section(
            "Band power", render_note("The places of these channels are not known, so there is no map.")
        )
    return render_section("Band power", render_figure(figure, caption))


def render_search_summary(results: ResultsTree) -> str:
    lines = []
    for one in results["search"]:
        changes = ", ".join(f"{k}={format_value(v)}" for k, v in (one["changes"] or {}).items())
        optimism = None if None in (one["inner"], one["test"]) else one["inner"] - one["test"]
        lines.append(
            [
                one["study"],
                str(one["candidates"]),
                format_percent(one["inner"]),
                format_percent(one["test"]),
                format_points(optimism),
                changes,
            ]
        )
    head = ["study", "candidates", "inner folds", "tested", "optimism, points", "chosen"]
    explanation = "Balanced accuracy of recordings, percent. The best of many is too good by luck: believe its test."
    if len(lines) > 1:
        explanation += f" Candidates are shown of the first alone, {results['search'][0]['study']}."
    return render_section("Search", render_table(head, lines, "left"), render_note(explanation))


def render_leak_audit(results: ResultsTree) -> str:
    audit, lines = results["audit"], []
    for name in dict.fromkeys(one["name"] for one in audit["checks"]):
        same_check = [one for one in audit["checks"] if one["name"] == name]
        performed = [one for one in same_check if one["passed"] is not None]
        passed = (
            f"{sum(one['passed'] for one in performed)} of {len(same_check)} passed" if performed else "not looked at"
        )
        lines.append(
            [
                name,
                passed,
                same_check[0]["detail"] + (f" (fold {same_check[0]['fold']})" if len(same_check) > 1 else ""),
            ]
        )
    explanation = (
        "Derived again from each checkpoint's own split.json, its weights and the content of the windows. A run that "
        f"fails has no page. sha256 of the summary: {audit['sha256']}."
    )
    return render_section(
        "Leak audit", render_note(explanation), render_table(["check", "checkpoints", "detail"], lines, "left")
    )


def render_skipped_results(results: ResultsTree) -> list[str]:
    lines = results.get("unread") or []
    explanation = "What the results store has beside these checkpoints and could not be read is not on this page."
    return (
        [
            render_section(
                "Passed over", render_note(explanation), render_table(["what"], [[line] for line in lines], "left")
            )
        ]
        if lines
        else []
    )


def render_provenance(results: ResultsTree) -> str:
    lines = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in results["reproduce"].items() if k != "command"]
    command = f"<pre>{html.escape(results['reproduce']['command'])}</pre>"
    return render_section("Reproduce", command, render_table(["", ""], lines, "left"))
