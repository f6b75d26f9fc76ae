"""The robustness test as a person reads it: lines for the terminal, sections of a page."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info
from eav_ray.evaluation.comparisons import format_subjects_wanted
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.evaluation.robustness import MIN_USABLE_SHARE, NOT_TESTABLE
from eav_ray.reporting.figures import choose_color, make_panels
from eav_ray.reporting.formatting import apply_format, format_bounds, format_interval, format_short_percent
from eav_ray.reporting.html import Drawing, Section, Table, build_table
from eav_ray.words import format_count, format_recordings

# Of what combines modalities.
LINE_STYLES: dict[str, Any] = {"fusion": "-", "mean_probability": (0, (1, 1)), "product": "--"}
WEIGHT_DESCRIPTIONS = {"raw": "as the model gives it", "corrected": "corrected for the number of tokens"}
AREA_NOTE = (
    "Area under accuracy against the steps, the clean recordings first, all steps equally far apart: as a share of the "
    "clean accuracy (1 where nothing is lost; chance over clean accuracy where all is), and as mean accuracy."
)


def format_robustness(results: ResultsTree) -> str:
    """Format a line a kind: accuracy clean and at the strongest step, the area, and what became of the weight."""
    clean, sources = results["conditions"][0], results["sources"]
    main_source = "fusion" if "fusion" in sources else sources[0]
    lines = [
        f"robustness: {format_recordings(results['recordings'], results['n_subjects'])}, "
        f"{results['recordings_description']}; accuracy in percent, mean over people; clean: "
        f"{_list_accuracies(clean, sources)}",
        f"{'strongest step':44}{main_source:>8}{'itself':>8}{'area':>7}  "
        + ("weight of what is corrupted (95 %), Holm" if results["weight_changes"] else ""),
    ]
    areas = {area["kind"]: area["sources"][main_source]["relative_to_clean"] for area in results["accuracy_areas"]}
    for kind, steps in _group_by_kind(results).items():
        last = steps[-1]
        corrupted = last["modalities"][0] if len(last["modalities"]) == 1 else ""
        itself = _format_accuracy(last, corrupted) if corrupted in sources else ""
        refused = f" ({_describe_refused(last)})" if _describe_refused(last) else ""
        lines.append(
            (
                f"{kind + ', ' + describe_level(last):44}{_format_accuracy(last, main_source):>8}{itself:>8}"
                f"{apply_format(areas[kind], '.2f'):>7}  {_describe_weight_change(results, last)}{refused}"
            ).rstrip()
        )
    lines.append(
        f"chance {100 * results['chance']:.1f}; area: 1 where nothing is lost. {describe_weight_changes(results)}"
    )
    return "\n".join(lines)


def build_robustness_sections(results: ResultsTree) -> list[Section]:
    """Build curves for each modality and for all at once, areas, and the weights with their test."""
    introduction = (
        f"{format_recordings(results['recordings'], results['n_subjects'])} ({results['recordings_description']}), "
        "corrupted as recorded, before any preprocessing, and predicted again. A recording, or a modality of it, that "
        "preprocessing refuses counts as wrong for that modality, and is masked in the fusion."
    )
    sections = [Section("Robustness", [introduction])]
    by_kind = _group_by_kind(results)
    kinds_by_modality: dict[str, list[str]] = {}
    for modality in results["modalities"]:
        if kinds := [kind for kind, steps in by_kind.items() if steps[-1]["modalities"] == [modality]]:
            kinds_by_modality[modality] = kinds
            sections.append(_build_corruption_section(results, kinds, modality, get_modality_info(modality).title))
    if "combined" in by_kind:
        sections.append(_build_corruption_section(results, ["combined"], "", "All modalities"))
    sections.append(Section("Areas under the curves", [AREA_NOTE, _build_area_table(results)]))
    if results["weight_changes"]:
        parts = [
            describe_weight_changes(results),
            _draw_weights(results, kinds_by_modality),
            *(_build_weight_table(results, weight) for weight in WEIGHT_DESCRIPTIONS),
        ]
        sections.append(Section("Do the weights fall for what is corrupted?", parts))
    return sections


def describe_weight_changes(results: ResultsTree) -> str:
    """The paper's claim in a sentence or two: that the weight of a corrupted modality falls."""
    changes = [c for c in results["weight_changes"] if c["weight"] == "corrected"]
    if not changes:
        return "One modality has no weights to test." if len(results["modalities"]) < 2 else ""
    measured = [c for c in changes if c["verdict"] != NOT_TESTABLE]
    if measured and all(abs(c["difference"]) < 1e-9 for c in measured):
        return "The weights do not depend on the input: this fusion gives every modality that is there the same."
    kinds_by_verdict: dict[str, list[str]] = {}
    for c in changes:
        kinds_by_verdict.setdefault(c["verdict"], []).append(c["kind"])
    falls = len(kinds_by_verdict.get("falls", []))
    clauses = [f"The weight of the corrupted modality falls in {falls} of {len(measured)} kinds of corruption"]
    forms = {
        "falls": "",
        "not significant": "does not fall significantly in {}",
        "rises": "RISES in {}",
        NOT_TESTABLE: "is not testable in {}, as it was not there, or preprocessing refused most of it",
    }
    clauses += [
        form.format(", ".join(kinds_by_verdict[verdict]))
        for verdict, form in forms.items()
        if form and verdict in kinds_by_verdict
    ]
    for verdict in [v for v in kinds_by_verdict if v not in forms]:  # too few people
        counted = [
            f"{c['kind']} (lower in {c['n_worse']} of {format_count(c['n_subjects'], 'person')})"
            for c in measured
            if c["verdict"] == verdict
        ]
        clauses.append(f"{verdict}: {', '.join(counted)}")
    test = "Wilcoxon's signed-rank test with Holm's correction"
    if measured:
        test += f", paired over {format_count(measured[0]['n_subjects'], 'person')}"
    return f"{'; '.join(clauses)}. {test}."


def describe_level(condition: ResultsTree) -> str:
    """Of a condition, with its unit."""
    if len(condition["levels"]) > 1:
        return " + ".join(one["kind"] for one in condition["levels"])
    one = condition["levels"][0]
    return f"{one['level']:g} {one['unit']}"


def _group_by_kind(results: ResultsTree) -> dict[str, list[ResultsTree]]:
    by_kind: dict[str, list[ResultsTree]] = {}
    for c in results["conditions"][1:]:
        by_kind.setdefault(c["kind"], []).append(c)
    return by_kind


def _format_accuracy(condition: ResultsTree, source: str) -> str:
    return format_short_percent(condition["sources"][source]["accuracy"])


def _list_accuracies(condition: ResultsTree, sources: Sequence[str]) -> str:
    return ", ".join(f"{s} {_format_accuracy(condition, s)}" for s in sources)


def _describe_refused(condition: ResultsTree) -> str:
    shares = [f"{100 * share:.0f} % of {m}" for m, share in condition["refused_share"].items() if share > 0]
    return f"{' and '.join(shares)} refused by preprocessing" if shares else ""


def _describe_weight_change(results: ResultsTree, strongest: ResultsTree) -> str:
    """Describe what became of the corrected weight.

    Args:
        strongest: The strongest step of its kind, at which nothing may be left to be weighed.
    """
    changes = {c["kind"]: c for c in results["weight_changes"] if c["weight"] == "corrected"}
    if (change := changes.get(strongest["kind"])) is None:
        return ""
    if change["verdict"] == NOT_TESTABLE:
        return NOT_TESTABLE
    at = f" at {change['level']:g}" if change["severity"] != strongest["severity"] else ""
    return (
        f"{change['clean']:.3f} to {change['corrupted']:.3f} ({format_interval(change['interval'], '+.3f')}), "
        f"{apply_format(change['holm'], '.2g')}: {change['verdict']}{at}"
    )


def _build_corruption_section(results: ResultsTree, kinds: Sequence[str], modality: str, title: str) -> Section:
    """Build the curves and the table of some kinds; `modality` is empty where all are corrupted."""
    return Section(
        f"{title} corrupted", [_draw_accuracy_curves(results, kinds, modality), _build_accuracy_table(results, kinds)]
    )


def _build_accuracy_table(results: ResultsTree, kinds: Sequence[str]) -> Table:
    rows = [{"kind": "clean", **results["conditions"][0]["sources"]}]
    for c in (c for kind in kinds for c in _group_by_kind(results)[kind]):
        rows.append({"kind": c["kind"], "level": describe_level(c), "refused": _describe_refused(c), **c["sources"]})
    scores = [(f"{s}, %", s, _format_score) for s in results["sources"]]
    columns = [("kind", "kind", ""), ("level", "level", ""), *scores, ("", "refused", "")]
    return build_table(rows, columns, missing="")


def _format_score(score: ResultsTree) -> str:
    balanced = f"; balanced {100 * score['balanced_accuracy']:.1f}" if "balanced_accuracy" in score else ""
    return f"{format_short_percent(score['accuracy'])} ({format_bounds(score)}){balanced}"


def _build_area_table(results: ResultsTree) -> Table:
    columns = [("kind", "kind", ""), *((s, s, _format_area) for s in results["sources"])]
    return build_table([{"kind": area["kind"], **area["sources"]} for area in results["accuracy_areas"]], columns)


def _format_area(area: ResultsTree) -> str:
    return f"{apply_format(area['relative_to_clean'], '.3f')} ({format_short_percent(area['mean_accuracy'])} %)"


def _build_weight_table(results: ResultsTree, weight: str) -> Table:
    columns = [
        ("kind", "kind", ""),
        ("at", "at", ""),
        ("clean", "clean", ".3f"),
        ("corrupted", "corrupted", ".3f"),
        ("difference (95 %)", "change", ""),
        ("lower", "n_worse", ""),
        ("higher", "n_better", ""),
        ("equal", "n_equal", ""),
        ("Wilcoxon p", "p", ".2g"),
        ("Holm", "holm", ".2g"),
        ("rank-biserial", "effect", "+.2f"),
        ("people wanted", "n_subjects_wanted", format_subjects_wanted),
        ("the weight", "verdict", ""),
    ]
    rows = []
    for c in [c for c in results["weight_changes"] if c["weight"] == weight]:
        if c["verdict"] == NOT_TESTABLE:
            rows.append({"kind": c["kind"], "verdict": c["verdict"]})
        else:
            change = f"{c['difference']:+.3f} ({format_interval(c['interval'], '+.3f')})"
            rows.append(c | {"at": f"{c['level']:g} {c['unit']}", "change": change})
    return build_table(rows, columns, title=f"Weight {WEIGHT_DESCRIPTIONS[weight]}", missing="")


def _make_step_panels(titles: Sequence[str], ylabel: str) -> tuple[Figure, list[Axes]]:
    # The legend above wants its width, whatever stands below.
    figure, panels = make_panels(titles, 3, (2.9, 2.5), margins=(0.4, 0.5), min_width=5.5, sharey=True)
    for axes in panels:
        axes.tick_params(axis="y", labelsize=7)
    panels[0].set_ylabel(ylabel, fontsize=8)
    return figure, panels


def _mark_steps(axes: Axes, marks: Sequence[str], unit: str) -> None:
    axes.set_xticks(range(len(marks) + 1), ["clean", *marks], fontsize=7)
    axes.set_xlabel(unit, fontsize=8)


def _draw_accuracy_curves(results: ResultsTree, kinds: Sequence[str], modality: str) -> Drawing:
    """Draw accuracy against the steps of each kind, in a panel of its own."""
    clean, by_kind = results["conditions"][0], _group_by_kind(results)
    shown_sources = [s for s in results["sources"] if s in (*LINE_STYLES, modality) or not modality]
    strongest = [by_kind[kind][-1] for kind in kinds]
    titles = [describe_level(c) if len(c["levels"]) > 1 else c["kind"].partition(".")[2] for c in strongest]
    figure, panels = _make_step_panels(titles, "accuracy of recordings, %")
    for axes, kind in zip(panels, kinds, strict=True):
        steps = [clean, *by_kind[kind]]
        for s in shown_sources:
            color, scores = choose_color(s), [c["sources"][s] for c in steps]
            accuracy, low, high = (
                [np.nan if one[key] is None else 100 * one[key] for one in scores]
                for key in ("accuracy", "low", "high")
            )
            axes.plot(range(len(steps)), accuracy, ls=LINE_STYLES.get(s, "-."), marker="o", ms=3, color=color, label=s)
            if s in ("fusion", modality):
                axes.fill_between(range(len(steps)), low, high, color=color, alpha=0.12, lw=0)
        for x, c in enumerate(steps):
            if max(c["refused_share"].values(), default=0) >= MIN_USABLE_SHARE:
                axes.annotate("masked", (x - 0.1, 8), ha="right", fontsize=7, color="0.3")
        axes.axhline(100 * results["chance"], color="0.5", lw=0.8, ls=":", label="chance")
        if len(steps[-1]["levels"]) > 1:
            _mark_steps(axes, [str(c["severity"]) for c in steps[1:]], "step")
        else:
            _mark_steps(axes, [f"{c['levels'][0]['level']:g}" for c in steps[1:]], steps[-1]["levels"][0]["unit"])
        axes.set_ylim(0, 102)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center", frameon=False, fontsize=8)
    last = "; ".join(f"{c['kind']} at {describe_level(c)}: {_list_accuracies(c, shown_sources)}" for c in strongest)
    corrupted = get_modality_info(modality).title if modality else "all modalities"
    return Drawing(
        figure,
        f"Accuracy in percent with {corrupted} corrupted, with 95 % intervals; masked: preprocessing refused most of "
        f"what was corrupted. Clean: {_list_accuracies(clean, shown_sources)}. Strongest step: {last}.",
    )


def _draw_weights(results: ResultsTree, kinds_by_modality: Mapping[str, Sequence[str]]) -> Drawing:
    """Draw the weight of each modality at the steps of the kinds that corrupt it."""
    clean, by_kind, change_texts = results["conditions"][0], _group_by_kind(results), []
    titles = [f"{get_modality_info(m).title} corrupted: its weight" for m in kinds_by_modality]
    figure, panels = _make_step_panels(titles, "mean modality weight")
    for axes, (m, kinds) in zip(panels, kinds_by_modality.items(), strict=True):
        for kind, marker in zip(kinds, cycle("osv^Dxp*"), strict=False):
            weights = [c["weights"][m]["corrected"] for c in (clean, *by_kind[kind])]
            y = [np.nan if weight is None else weight for weight in weights]
            axes.plot(range(len(y)), y, marker=marker, ms=4, lw=1, label=kind.partition(".")[2])
            change_texts.append(f"{kind} {_describe_weight_change(results, by_kind[kind][-1])}")
        _mark_steps(axes, [str(c["severity"]) for c in by_kind[kinds[0]]], "step")
        axes.legend(fontsize=6.5, frameon=False)
    panels[0].set_ylim(bottom=0)
    return Drawing(
        figure,
        f"Weight of the corrupted modality, {WEIGHT_DESCRIPTIONS['corrected']}, at each step. "
        f"{'; '.join(change_texts)}.",
    )
