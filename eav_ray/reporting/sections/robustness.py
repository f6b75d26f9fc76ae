"""The robustness test as a person reads it: lines for the terminal, sections of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info
from eav_ray.evaluation.robustness import MIN_USABLE_SHARE
from eav_ray.reporting.figures import choose_color
from eav_ray.reporting.html import render_figure, render_section, render_table

MAX_PANEL_COLUMNS = 3  # panels beside each other
LINE_STYLES = {"fusion": "-", "late_mean": "--"}  # of what combines modalities
WEIGHT_DESCRIPTIONS = {"raw": "as the model gives it", "corrected": "corrected for the number of tokens"}

ResultsTree = Mapping[str, Any]


def format_robustness(results: ResultsTree) -> str:
    """A line a kind: accuracy clean and at the strongest step, the area, and what became of the weight."""
    clean, sources = results["conditions"][0], results["sources"]
    main_source = "fusion" if "fusion" in sources else sources[0]
    lines = [
        f"robustness: {results['recordings']} recordings of {results['n_subjects']} people, "
        f"{results['recordings_description']}; accuracy in "
        f"percent, mean over people; clean: " + ", ".join(f"{s} {_format_accuracy(clean, s)}" for s in sources),
        f"{'strongest step':44}{main_source:>8}{'itself':>8}{'area':>7}  "
        + ("weight of what is corrupted (95 %), Holm" if results["weight_changes"] else ""),
    ]
    for kind, steps in _group_by_kind(results).items():
        last = steps[-1]
        corrupted_modality = last["modalities"][0] if len(last["modalities"]) == 1 else ""
        corrupted_accuracy = _format_accuracy(last, corrupted_modality) if corrupted_modality in sources else ""
        area = _find_area(results, kind)["sources"][main_source]["relative_to_clean"]
        change = _find_weight_change(results, kind, "corrected")
        area_cell = f"{area:.2f}" if area is not None else "-"
        weight_change = _describe_weight_change(change, last) + _describe_refused(last)
        lines.append(
            (
                f"{kind + ', ' + describe_level(last):44}{_format_accuracy(last, main_source):>8}"
                f"{corrupted_accuracy:>8}{area_cell:>7}  {weight_change}"
            ).rstrip()
        )
    lines.append(
        f"chance {100 * results['chance']:.1f}; area: 1 where nothing is lost. {describe_weight_changes(results)}"
    )
    return "\n".join(lines)


def render_robustness_sections(results: ResultsTree) -> list[str]:
    """HTML: curves for each modality and for all at once, areas, and the weights with their test."""
    rendered = [render_section("Robustness", _render_introduction(results))]
    groups = {
        m: [k for k, steps in _group_by_kind(results).items() if steps[-1]["modalities"] == [m]]
        for m in results["modalities"]
    }
    groups = {m: kinds for m, kinds in groups.items() if kinds}
    for m, kinds in groups.items():
        rendered.append(
            render_section(
                f"{get_modality_info(m).title} corrupted",
                _plot_accuracy_curves(results, kinds, m),
                _render_accuracy_table(results, kinds),
            )
        )
    if "combined" in _group_by_kind(results):
        rendered.append(
            render_section(
                "All modalities corrupted",
                _plot_accuracy_curves(results, ["combined"], "all"),
                _render_accuracy_table(results, ["combined"]),
            )
        )
    rendered.append(render_section("Areas under the curves", _render_paragraph(AREA_NOTE), _render_area_table(results)))
    if results["weight_changes"]:
        parts = [
            _plot_weights(results, groups),
            *(_render_weight_changes(results, kind) for kind in WEIGHT_DESCRIPTIONS),
        ]
        rendered.append(
            render_section(
                "Do the weights fall for what is corrupted?",
                _render_paragraph(describe_weight_changes(results)),
                *parts,
            )
        )
    return rendered


AREA_NOTE = (
    "Area under accuracy against the steps, the clean recordings first, all steps equally far apart: as a share of the "
    "clean accuracy (1 where nothing is lost; chance over clean accuracy where all is), and as mean accuracy."
)


def describe_weight_changes(results: ResultsTree) -> str:
    """The paper's claim in a sentence or two: that the weight of a corrupted modality falls."""
    changes = [c for c in results["weight_changes"] if c["weight"] == "corrected"]
    if not changes:
        return "One modality has no weights to test." if len(results["modalities"]) < 2 else ""
    verdicts = {c["verdict"] for c in changes}
    kinds_by_verdict = {v: ", ".join(c["kind"] for c in changes if c["verdict"] == v) for v in verdicts}
    tested = [c for c in changes if c["p"] is not None]
    if tested and all(abs(c["difference"]) < 1e-9 for c in tested):
        return "The weights do not depend on the input: this fusion gives every modality that is there the same."
    falls = sum(c["verdict"] == "falls" for c in changes)
    clauses = [f"The weight of the corrupted modality falls in {falls} of {len(tested)} kinds of corruption"]
    clauses += (
        [f"does not fall significantly in {kinds_by_verdict['not significant']}"]
        if "not significant" in kinds_by_verdict
        else []
    )
    clauses += [f"RISES in {kinds_by_verdict['rises']}"] if "rises" in kinds_by_verdict else []
    refused = "as it was not there, or preprocessing refused most of it"
    clauses += (
        [f"is not testable in {kinds_by_verdict['not testable']}, {refused}"]
        if "not testable" in kinds_by_verdict
        else []
    )
    first = tested[0] if tested else None
    unit = f", paired over {first['n']} {first['paired_over']}" if first else ""
    few_subjects_note = (
        " (fewer than 6 people: recordings of one person are not independent)" if unit.endswith("recordings") else ""
    )
    test = "Wilcoxon's signed-rank test with Holm's correction"
    return f"{'; '.join(clauses)}. {test}{unit}{few_subjects_note}; the 95 % interval must leave 0 out as well."


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
    return f"{100 * condition['sources'][source]['accuracy']:.1f}"


def _find_area(results: ResultsTree, kind: str) -> ResultsTree:
    return next(a for a in results["accuracy_areas"] if a["kind"] == kind)


def _find_weight_change(results: ResultsTree, kind: str, weight: str) -> ResultsTree | None:
    return next((c for c in results["weight_changes"] if (c["kind"], c["weight"]) == (kind, weight)), None)


def _describe_refused(condition: ResultsTree) -> str:
    shares = [f"{100 * share:.0f} % of {m}" for m, share in condition["refused_share"].items() if share > 0]
    return f" ({' and '.join(shares)} refused by preprocessing)" if shares else ""


def _describe_weight_change(change: ResultsTree | None, strongest: ResultsTree) -> str:
    """
    Args:
        strongest: The strongest step of its kind, at which nothing may be left to be weighed.
    """
    if change is None:
        return ""
    if change["p"] is None:
        return "not testable"
    at = f" at {change['level']:g}" if change["severity"] != strongest["severity"] else ""
    return (
        f"{change['clean']:.3f} to {change['corrupted']:.3f} ({change['low']:+.3f} to {change['high']:+.3f}), "
        f"{change['holm']:.2g}: {change['verdict']}{at}"
    )


def _render_paragraph(text: str) -> str:
    return f"<p>{text}</p>" if text else ""


def _render_introduction(results: ResultsTree) -> str:
    return _render_paragraph(
        f"{results['recordings']} recordings of {results['n_subjects']} people ({results['recordings_description']}), "
        "corrupted as recorded, before any preprocessing, and predicted again. A recording, or a modality of it, that "
        "preprocessing refuses counts as wrong for that modality, and is masked in the fusion."
    )


def _render_accuracy_table(results: ResultsTree, kinds: Sequence[str]) -> str:
    sources = results["sources"]
    clean = results["conditions"][0]
    lines = [["clean", "", *(_format_accuracy_interval(clean, s) for s in sources), ""]]
    for kind in kinds:
        for c in _group_by_kind(results)[kind]:
            lines.append(
                [
                    kind,
                    describe_level(c),
                    *(_format_accuracy_interval(c, s) for s in sources),
                    _describe_refused(c).strip(" ()"),
                ]
            )
    return render_table(["kind", "level", *(f"{s}, %" for s in sources), ""], lines)


def _format_accuracy_interval(condition: ResultsTree, source: str) -> str:
    score = condition["sources"][source]
    balanced = f"; balanced {100 * score['balanced_accuracy']:.1f}" if "balanced_accuracy" in score else ""
    return f"{100 * score['accuracy']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f}){balanced}"


def _render_area_table(results: ResultsTree) -> str:
    lines = []
    for area in results["accuracy_areas"]:
        cells = []
        for s in results["sources"]:
            one = area["sources"][s]
            share = "-" if one["relative_to_clean"] is None else f"{one['relative_to_clean']:.3f}"
            cells.append(f"{share} ({100 * one['mean_accuracy']:.1f} %)")
        lines.append([area["kind"], *cells])
    return render_table(["kind", *results["sources"]], lines)


def _render_weight_changes(results: ResultsTree, weight: str) -> str:
    lines = []
    for c in results["weight_changes"]:
        if c["weight"] != weight:
            continue
        if c["p"] is None:
            lines.append([c["kind"], *[""] * 7, c["verdict"]])
            continue
        lines.append(
            [
                c["kind"],
                f"{c['level']:g} {c['unit']}",
                f"{c['clean']:.3f}",
                f"{c['corrupted']:.3f}",
                f"{c['difference']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f})",
                f"{c['p']:.2g}",
                f"{c['holm']:.2g}",
                f"{c['effect']:+.2f}",
                c["verdict"],
            ]
        )
    head = [
        "kind",
        "at",
        "clean",
        "corrupted",
        "difference (95 %)",
        "Wilcoxon p",
        "Holm",
        "rank-biserial",
        "the weight",
    ]
    return f"<h3>Weight {WEIGHT_DESCRIPTIONS[weight]}</h3>\n" + render_table(head, lines)


def _make_panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(MAX_PANEL_COLUMNS, count)
    rows = -(-count // columns)
    # The legend above wants its width, whatever stands below.
    figure = Figure(figsize=(max(5.5, 2.9 * columns + 0.4), 2.5 * rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _plot_accuracy_curves(results: ResultsTree, kinds: Sequence[str], modality: str) -> str:
    """Accuracy against the steps of each kind, in a panel of its own."""
    shown_sources = [s for s in results["sources"] if s in ("fusion", "late_mean", modality) or modality == "all"]
    figure, panels = _make_panels(len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        steps = [results["conditions"][0], *_group_by_kind(results)[kind]]
        for s in shown_sources:
            color, line = choose_color(s), LINE_STYLES.get(s, "-.")
            scores = [c["sources"][s] for c in steps]
            y = [100 * one["accuracy"] for one in scores]
            axes.plot(range(len(steps)), y, line, marker="o", ms=3, color=color, label=s)
            low, high = ([100 * one[end] for one in scores] for end in ("low", "high"))
            if s in ("fusion", modality):
                axes.fill_between(range(len(steps)), low, high, color=color, alpha=0.12, lw=0)
        for x, c in enumerate(steps):
            if max(c["refused_share"].values(), default=0) >= MIN_USABLE_SHARE:
                axes.annotate("masked", (x - 0.1, 8), ha="right", fontsize=7, color="0.3")
        axes.axhline(100 * results["chance"], color="0.5", lw=0.8, ls=":", label="chance")
        all_modalities = len(steps[-1]["levels"]) > 1
        unit = "step" if all_modalities else steps[-1]["levels"][0]["unit"]
        marks = [str(c["severity"]) if all_modalities else f"{c['levels'][0]['level']:g}" for c in steps[1:]]
        axes.set_xticks(range(len(steps)), ["clean", *marks], fontsize=7)
        axes.set_title(describe_level(steps[-1]) if all_modalities else kind.partition(".")[2], fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_ylim(0, 102)
        axes.tick_params(axis="y", labelsize=7)
    panels[0].set_ylabel("accuracy of recordings, %", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center", frameon=False, fontsize=8)
    return render_figure(figure, _describe_curves(results, kinds, modality, shown_sources))


def _describe_curves(results: ResultsTree, kinds: Sequence[str], modality: str, shown_sources: Sequence[str]) -> str:
    clean = results["conditions"][0]
    corrupted_text = "all modalities" if modality == "all" else get_modality_info(modality).title
    strongest_texts = []
    for kind in kinds:
        last = _group_by_kind(results)[kind][-1]
        strongest_texts.append(
            f"{kind} at {describe_level(last)}: " + ", ".join(f"{s} {_format_accuracy(last, s)}" for s in shown_sources)
        )
    clean_text = ", ".join(f"{s} {_format_accuracy(clean, s)}" for s in shown_sources)
    return (
        f"Accuracy in percent with {corrupted_text} corrupted, with 95 % intervals; masked: preprocessing refused most "
        f"of what was corrupted. Clean: {clean_text}. Strongest step: {'; '.join(strongest_texts)}."
    )


def _plot_weights(results: ResultsTree, groups: Mapping[str, Sequence[str]]) -> str:
    figure, panels = _make_panels(len(groups))
    for axes, (m, kinds) in zip(panels, groups.items(), strict=True):
        count = len(_group_by_kind(results)[kinds[0]])
        for n, kind in enumerate(kinds):
            steps = [results["conditions"][0], *_group_by_kind(results)[kind]]
            y = [c["weights"][m]["corrected"] for c in steps]
            y = [np.nan if value is None else value for value in y]
            axes.plot(range(len(steps)), y, marker="osv^Dxp*"[n % 8], ms=4, lw=1, label=kind.partition(".")[2])
        axes.set_title(f"{get_modality_info(m).title} corrupted: its weight", fontsize=9)
        axes.set_xticks(range(count + 1), ["clean", *map(str, range(1, count + 1))], fontsize=7)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.legend(fontsize=6.5, frameon=False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean modality weight", fontsize=8)
    change_texts = []
    for kind in (k for kinds in groups.values() for k in kinds):
        change = _find_weight_change(results, kind, "corrected")
        change_texts.append(f"{kind} {_describe_weight_change(change, _group_by_kind(results)[kind][-1])}")
    return render_figure(
        figure,
        f"Weight of the corrupted modality, {WEIGHT_DESCRIPTIONS['corrected']}, at each step. "
        f"{'; '.join(change_texts)}.",
    )
