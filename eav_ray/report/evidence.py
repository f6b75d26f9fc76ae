"""The page that says what a result is worth: one HTML file, drawn from `results.json` and nothing else."""

import html
import json
from collections.abc import Sequence
from typing import Any

import matplotlib

from eav_ray.report import figures
from eav_ray.report.page import document, figure_svg, note, section, table
from eav_ray.report.statistics import ALPHA, MIN_SUBJECTS
from eav_ray.report.table import short

Tree = dict[str, Any]
FORMAT = 1  # of results.json
PUBLISHED = "published"


def page(results: Tree, extra: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        results: What `runtime.evidence` gathers, as it is in `results.json`.
        extra: Sections of what other commands measured: ablation, stress, cost, a search.
    """
    matplotlib.use("agg")
    parts = [_head(results), _accuracy(results)]
    for name, make in (
        ("protocols", _protocols),
        ("reference", _reference),
        ("people", render_subjects),
        ("comparisons", _comparisons),
        ("seeds", _seeds),
        ("confusion", _confusion),
        ("weights", _weights),
        ("collapse", _collapse),
        ("calibration", _calibration),
        ("histories", _curves),
        ("gap", _gap),
        ("worst", _worst),
        ("quality", _quality),
        ("bands", _bands),
        ("search", _search),
    ):
        if results.get(name):
            parts.append(make(results))
    parts += [*extra, _audit(results), *render_skipped_results(results), _reproduce(results)]
    return document(results["title"], parts, contents=True)


def percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def span(pair: Sequence[float | None]) -> str:
    return f"{percent(pair[0])} to {percent(pair[1])}"


def points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f}"


def p_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _head(results: Tree) -> str:
    accuracy = results["accuracy"]
    main = list(accuracy["sources"])[-1]
    one = accuracy["sources"][main]
    kind = "balanced" if accuracy["unequal"] else "mean"
    low_high = one["balanced_interval" if accuracy["unequal"] else "interval"]
    name = "balanced accuracy" if accuracy["unequal"] else "accuracy"
    chance = accuracy["chance"]
    headline = (
        f"{main}: {name} {percent(one[kind])} % (95 % {span(low_high)}) over {accuracy['recordings']} recordings of"
        f" {accuracy['people']} people {results['apart']}; chance {percent(chance['level'])} %"
    )
    if one["inside_chance"]:
        headline += "; this is inside the band of chance"
    return (
        f"<h1>{html.escape(results['title'])}</h1><p><strong>{html.escape(headline)}.</strong></p>"
        f"<p>{html.escape(results['about'])}</p>"
    )


def _accuracy(results: Tree) -> str:
    accuracy = results["accuracy"]
    head = ["source", "mean", "SD over people", "95 % interval", "balanced", "95 % interval", "macro-F1"]
    head += ["per frame", "per window", "per recording"]
    rows = [
        [
            source,
            percent(one["mean"]),
            percent(one["sd"]),
            span(one["interval"]),
            percent(one["balanced"]),
            span(one["balanced_interval"]),
            percent(one["macro_f1"]),
            *(percent(one[unit]) for unit in ("frame", "window", "recording")),
        ]
        for source, one in accuracy["sources"].items()
    ]
    chance = accuracy["chance"]
    explanation = (
        f"Percent. Mean and SD over people; intervals by a bootstrap over {accuracy['people']} people and their "
        f"{accuracy['recordings']} recordings, never over windows. Chance is {percent(chance['level'])}; guessing "
        f"stays between {percent(chance['low'])} and {percent(chance['high'])} in {100 * chance['band']:.1f} % of the "
        "cases (binomial over recordings)."
    )
    if accuracy["unequal"]:
        explanation += (
            " Classes are unequal, so naming the largest one beats chance: read the balanced columns, in which "
            f"guessing stays between {percent(chance['balanced_low'])} and {percent(chance['balanced_high'])} as often."
        )
    silent = [f"{one['silent']} of {s}" for s, one in accuracy["sources"].items() if one["silent"]]
    explanation += (
        f" Recordings in which a source has nothing to say count as wrong: {', '.join(silent)}." if silent else ""
    )
    inside = [s for s, one in accuracy["sources"].items() if one["inside_chance"]]
    explanation += f" Inside the band of chance: {', '.join(inside)}." if inside else ""
    if accuracy.get("oracle") is not None:
        explanation += f" An oracle that always heeds a right modality would reach {percent(accuracy['oracle'])}."
    return section("Accuracy", table(head, rows), note(explanation))


def _protocols(results: Tree) -> str:
    found = results["protocols"]
    rows = [
        [row["protocol"], str(row["people"]), str(row["recordings"]), source]
        + [percent(one[unit]) for unit in ("frame", "window", "recording")]
        + [percent(one["sd"])]
        for row in found["rows"]
        for source, one in row["sources"].items()
    ]
    head = ["protocol", "people", "recordings", "source", "per frame", "per window", "per recording", "SD over people"]
    parts = [
        note(
            "The same experiment under each protocol that was run, percent, mean over people. paper and within test "
            "people of whom other recordings were trained on; subject_kfold and loso test strangers. What a protocol "
            "adds is no better model: it is another question."
        ),
        figure_svg(
            figures.protocols(found["rows"]), "Accuracy of each source under each protocol, by unit of scoring."
        ),
        table(head, rows),
    ]
    if found["inflation"]:
        lines = [
            [f"{one['protocol']}, per {one['unit']}", one["base"], one["source"], str(one["people"])]
            + [points(one["difference"])]
            + [p_text(one["p"]), p_text(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
            for one in found["inflation"]
        ]
        head = ["protocol", "against", "source", "people", "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
        parts += ["<h3>What a protocol adds</h3>", table(head, lines, "left")]
    if found["missing"]:
        parts.append(
            note(f"Not run yet: {', '.join(found['missing'])}; jobs/protocol.py with fold.protocol runs them.")
        )
    return section("Protocols side by side", *parts)


def _reference(results: Tree) -> str:
    lines = [
        [one["ours"], str(one["people"]), percent(one["mean"]), percent(one["published"]), points(one["difference"])]
        + [p_text(one["p"]), p_text(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
        for one in results["reference"]["rows"]
    ]
    head = ["source", "people", "ours", PUBLISHED, "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
    explanation = f"Published: {results['reference']['source']}. Paired over people. {results['reference']['note']}"
    return section("Against the published reference", table(head, lines, "left"), note(explanation))


def render_subjects(results: Tree) -> str:
    rows = results["people"]
    sources = [s for s in results["accuracy"]["sources"]]
    known, main = any("reference" in r for r in rows), sources[-1]
    # What the bars are: one modality is held against the same one.
    column = figures.published_column(sources)
    head = ["person", "recordings", *sources, *([f"{PUBLISHED} {column}"] if known else [])]
    lines = [
        [r["subject"], str(r["recordings"]), *(percent(r[s]) for s in sources)]
        + ([percent(r["reference"][column]) if "reference" in r else "–"] if known else [])
        for r in rows
    ]
    caption = f"{main} of {len(rows)} people, from {percent(rows[0][main])} to {percent(rows[-1][main])} %."
    caption += f" {PUBLISHED.capitalize()}: per frame, under the protocol paper." if known else ""
    drawn = figures.plot_subjects(rows, sources, results["chance_of_person"], published=known)
    return section("People", figure_svg(drawn, caption), table(head, lines))


def _comparisons(results: Tree) -> str:
    parts = []
    for name, explanation in (
        ("fusion", "The fusion against the rest"),
        ("modalities", "Modalities against each other"),
    ):
        lines = [
            [f"{c['ours']} – {c['other']}", str(c["people"]), points(c["difference"])]
            + [f"{points(c['interval'][0])} to {points(c['interval'][1])}", p_text(c["p"]), p_text(c["holm"])]
            + [f"{c['effect']:+.2f}", c["verdict"]]
            for c in results["comparisons"][name]
        ]
        if lines:
            head = ["difference", "people", "points", "95 % interval", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
            parts += [f"<h3>{explanation}</h3>", table(head, lines, "left")]
    if not parts:
        return ""
    explanation = (
        "Paired over people: Wilcoxon's signed-rank test, two-sided, Holm's correction within each table. The best "
        "single per person is chosen with its test labels, so it is an upper bound that no honest choice reaches."
    )
    return section("Comparisons", *parts, note(explanation))


def _seeds(results: Tree) -> str:
    found = results["seeds"]
    lines = [
        [source, *(percent(one["means"][str(s)]) for s in found["seeds"]), percent(one["sd"])]
        for source, one in found["sources"].items()
    ]
    explanation = "Trainings that differ by their seed alone. A difference below this spread is noise."
    return section(
        "Seeds: the noise floor", table(["source", *map(str, found["seeds"]), "SD"], lines), note(explanation)
    )


def _confusion(results: Tree) -> str:
    found, classes = results["confusion"], results["classes"]
    main = list(found)[-1]
    lines = [[k, *map(str, row)] for k, row in zip(classes, found[main], strict=True)]
    caption = f"Share of each true class (rows) that was given each class (columns), percent: {', '.join(found)}."
    counts = table([f"{main}: true", *classes, "none"], lines)
    return section("Confusion", figure_svg(figures.confusion(found, classes), caption), counts)


def _weights(results: Tree) -> str:
    found, modalities = results["weights"], results["modalities"]
    parts = [
        figure_svg(
            figures.weights(found, modalities),
            "Mean modality weights by class: as attended, and after division by each modality's number of tokens.",
        )
    ]
    head = ["class", *modalities, *(f"{m}, per token" for m in modalities)]
    by_class = found["weight"]["by_class"]
    lines = [
        [k, *(_three(row[m]) for m in modalities), *(_three(found["corrected"]["by_class"][k][m]) for m in modalities)]
        for k, row in by_class.items()
    ]
    parts.append(table(head, lines))
    head[0] = "person"
    by_subject = found["weight"]["by_person"]
    lines = [
        [k, *(_three(row[m]) for m in modalities), *(_three(found["corrected"]["by_person"][k][m]) for m in modalities)]
        for k, row in by_subject.items()
    ]
    parts.append(f"<details><summary>By person</summary>{table(head, lines)}</details>")
    tests = [f"{m}: p = {p_text(one['p'])}, {one['people']} people" for m, one in found["classes_differ"].items()]
    if tests:
        parts.append(note(f"Do weights differ between classes? Friedman's test over people: {'; '.join(tests)}."))
    parts.append(note("A weight says where attention went, not what the answer rests on: see ablation and stress."))
    return section("Modality weights", *parts)


def _collapse(results: Tree) -> str:
    lines = [[str(one["fold"]), one["check"], one["text"]] for one in results["collapse"]]
    explanation = note(
        "What the check of each trained fusion found: a modality that is not used, or has all the weight."
    )
    return section("Collapse", table(["fold", "check", "finding"], lines, "left"), explanation)


def _calibration(results: Tree) -> str:
    found = results["calibration"]
    scaled = any("scaled" in one for one in found.values())
    head = ["source", "recordings", "ECE", "NLL", "Brier"]
    head += ["temperature", "ECE, scaled", "NLL, scaled", "Brier, scaled"] if scaled else []
    lines = []
    for source, one in found.items():
        raw = one["raw"]
        line = [source, str(raw["count"]), *(_three(raw[k]) for k in ("ece", "nll", "brier"))]
        if scaled:
            values = list(one["temperatures"].values())
            line += [
                f"{sum(values) / len(values):.2f}" if values else "–",
                *(_three(one["scaled"][k]) for k in ("ece", "nll", "brier")),
            ]
        lines.append(line)
    explanation = (
        "A model that says 80 % should be right in 80 % of the cases. ECE is the mean gap over 10 bins of equal width; "
        "of few recordings it is above 0 even for a perfect model. "
    )
    explanation += results["calibration_note"]
    drawn = figure_svg(
        figures.reliability(found), "Confidence against accuracy of recordings; the diagonal is calibrated."
    )
    return section("Calibration", drawn, table(head, lines), note(explanation))


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _curves(results: Tree) -> str:
    parts, several = [], len(results["histories"]) > 1
    for fold, histories in results["histories"].items():
        drawn = figure_svg(figures.curves(histories), f"Training loss by epoch of {', '.join(histories)}, fold {fold}.")
        parts.append(f"<details><summary>fold {fold}</summary>{drawn}</details>" if several else drawn)
    return section("Learning curves", *parts)


def _gap(results: Tree) -> str:
    lines = [
        [
            source,
            percent(one["train"]),
            percent(one["test"]),
            points(None if None in (one["train"], one["test"]) else one["train"] - one["test"]),
            str(one["recordings"]),
        ]
        for source, one in results["gap"].items()
    ]
    head = ["source", "trained on, %", "tested, %", "gap, points", "recordings of training"]
    return section(
        "Training against test",
        table(head, lines),
        note("Accuracy per recording that has the source, evenly taken of training."),
    )


def _worst(results: Tree) -> str:
    sources = list(results["accuracy"]["sources"])
    head = ["person", *sources, "most frequent mistakes", "measured of their signals"]
    lines = []
    for r in results["worst"]:
        mistakes = ", ".join(f"{k} ({v})" for k, v in r["mistakes"].items())
        measured = ", ".join(
            f"{k.replace('_', ' ')} {v:.3g}" for k, v in r.get("measured", {}).items() if v is not None
        )
        lines.append([r["subject"], *(percent(r[s]) for s in sources), mistakes or "–", measured or "–"])
    return section("Worst people", table(head, lines, "left"))


def _quality(results: Tree) -> str:
    lines, drawn = [], []
    for one in results["quality"]:
        rho = "–" if one["rho"] is None else f"{one['rho']:+.2f}"
        if one["rho"] is None:
            explanation = "too few people" if len(one["points"]) < MIN_SUBJECTS else "the same for everybody"
        else:
            explanation = "significant" if one["holm"] < ALPHA else "not significant"
        name = one["measured"].replace("_", " ")
        lines.append(
            [name, one["source"], str(len(one["points"])), rho, p_text(one["p"]), p_text(one.get("holm")), explanation]
        )
        if one["rho"] is not None and one["measured"].startswith("eeg"):
            text = f"{name} against accuracy of {one['source']}, a dot a person."
            drawn.append(figure_svg(figures.quality(one, one["source"]), text))
    head = ["measured", "accuracy of", "people", "Spearman", "p", "Holm", "verdict"]
    explanation = note("Means over each person's tested recordings, as preprocessing measured them.")
    return section("Signal quality against accuracy", table(head, lines, "left"), explanation, *drawn)


def _bands(results: Tree) -> str:
    found = results["bands"]
    drawn = figures.heads(found["values"], found["channels"])
    caption = "EEG band power by class: dB above or below each person's mean over classes, mean over people."
    if drawn is None:
        return section("Band power", note("The places of these channels are not known, so there is no map."))
    return section("Band power", figure_svg(drawn, caption))


def _search(results: Tree) -> str:
    lines = []
    for one in results["search"]:
        changes = ", ".join(f"{k}={short(v)}" for k, v in (one["changes"] or {}).items())
        gained = None if None in (one["inner"], one["test"]) else one["inner"] - one["test"]
        lines.append(
            [one["study"], str(one["candidates"]), percent(one["inner"]), percent(one["test"]), points(gained), changes]
        )
    head = ["study", "candidates", "inner folds", "tested", "optimism, points", "chosen"]
    explanation = "Balanced accuracy of recordings, percent. The best of many is too good by luck: believe its test."
    if len(lines) > 1:
        explanation += f" Candidates are shown of the first alone, {results['search'][0]['study']}."
    return section("Search", table(head, lines, "left"), note(explanation))


def _audit(results: Tree) -> str:
    audit, lines = results["audit"], []
    for name in dict.fromkeys(one["name"] for one in audit["checks"]):
        mine = [one for one in audit["checks"] if one["name"] == name]
        performed = [one for one in mine if one["passed"] is not None]
        passed = f"{sum(one['passed'] for one in performed)} of {len(mine)} passed" if performed else "not looked at"
        lines.append([name, passed, mine[0]["detail"] + (f" (fold {mine[0]['fold']})" if len(mine) > 1 else "")])
    explanation = (
        "Derived again from each checkpoint's own split.json, its weights and the content of the windows. A run that "
        f"fails has no page. sha256 of the summary: {audit['sha256']}."
    )
    return section("Leak audit", note(explanation), table(["check", "checkpoints", "detail"], lines, "left"))


def render_skipped_results(results: Tree) -> list[str]:
    lines = results.get("unread") or []
    explanation = "What the results store has beside these checkpoints and could not be read is not on this page."
    return (
        [section("Passed over", note(explanation), table(["what"], [[line] for line in lines], "left"))]
        if lines
        else []
    )


def _reproduce(results: Tree) -> str:
    lines = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in results["reproduce"].items() if k != "command"]
    command = f"<pre>{html.escape(results['reproduce']['command'])}</pre>"
    return section("Reproduce", command, table(["", ""], lines, "left"))
