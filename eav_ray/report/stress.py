"""The stress test as a person reads it: lines for the terminal, sections of a page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eav_ray.report.degradation import LEFT
from eav_ray.report.page import figure_svg, section, table

COLUMNS = 3  # panels beside each other
STYLES = {
    "fusion": ("C0", "-"),
    "late_mean": ("C1", "--"),
    "audio": ("C2", "-."),
    "eeg": ("C3", "-."),
    "video": ("C4", "-."),
}
TITLES = {"audio": "Audio", "eeg": "EEG", "video": "Video"}
WEIGHTS = {"raw": "as the model gives it", "corrected": "corrected for the number of tokens"}

Tree = Mapping[str, Any]


def text(tree: Tree) -> str:
    """A line a kind: accuracy clean and at the strongest step, the area, and what became of the weight."""
    clean, sources = tree["conditions"][0], tree["sources"]
    joint = "fusion" if "fusion" in sources else sources[0]
    lines = [
        f"stress: {tree['recordings']} recordings of {tree['people']} people, {tree['recordings_are']}; accuracy in "
        f"percent, mean over people; clean: " + ", ".join(f"{s} {_percent(clean, s)}" for s in sources),
        f"{'strongest step':44}{joint:>8}{'itself':>8}{'area':>7}  "
        + ("weight of what is disturbed (95 %), Holm" if tree["claims"] else ""),
    ]
    for kind, steps in _kinds(tree).items():
        last = steps[-1]
        own = last["modalities"][0] if len(last["modalities"]) == 1 else ""
        itself = _percent(last, own) if own in sources else ""
        area = _area(tree, kind)["sources"][joint]["of_clean"]
        claim = _claim(tree, kind, "corrected")
        shown = f"{area:.2f}" if area is not None else "-"
        weight_change = _weighed(claim, last) + _refused(last)
        lines.append(
            f"{kind + ', ' + level(last):44}{_percent(last, joint):>8}{itself:>8}{shown:>7}  {weight_change}".rstrip()
        )
    lines.append(f"chance {100 * tree['chance']:.1f}; area: 1 where nothing is lost. {summary(tree)}")
    return "\n".join(lines)


def sections(tree: Tree) -> list[str]:
    """HTML: curves for each modality and for all at once, areas, and the weights with their test."""
    found = [section("Stress", _introduction(tree))]
    groups = {m: [k for k, steps in _kinds(tree).items() if steps[-1]["modalities"] == [m]] for m in tree["modalities"]}
    groups = {m: kinds for m, kinds in groups.items() if kinds}
    for m, kinds in groups.items():
        found.append(section(f"{TITLES[m]} disturbed", _curves(tree, kinds, m), _accuracies(tree, kinds)))
    if "together" in _kinds(tree):
        found.append(
            section("All modalities disturbed", _curves(tree, ["together"], "all"), _accuracies(tree, ["together"]))
        )
    found.append(section("Areas under the curves", _note(AREA), _areas(tree)))
    if tree["claims"]:
        parts = [_weight_figure(tree, groups), *(_claims(tree, kind) for kind in WEIGHTS)]
        found.append(section("Do the weights fall for what is disturbed?", _note(summary(tree)), *parts))
    return found


AREA = (
    "Area under accuracy against the steps, the clean recordings first, all steps equally far apart: as a share of the "
    "clean accuracy (1 where nothing is lost; chance over clean accuracy where all is), and as mean accuracy."
)


def summary(tree: Tree) -> str:
    """The paper's claim in a sentence or two: that the weight of a disturbed modality falls."""
    claims = [c for c in tree["claims"] if c["weight"] == "corrected"]
    if not claims:
        return "One modality has no weights to test." if len(tree["modalities"]) < 2 else ""
    verdicts = {c["verdict"] for c in claims}
    of = {v: ", ".join(c["kind"] for c in claims if c["verdict"] == v) for v in verdicts}
    tested = [c for c in claims if c["p"] is not None]
    if tested and all(abs(c["difference"]) < 1e-9 for c in tested):
        return "The weights do not depend on the input: this fusion gives every modality that is there the same."
    falls = sum(c["verdict"] == "falls" for c in claims)
    clauses = [f"The weight of the disturbed modality falls in {falls} of {len(tested)} kinds of distortion"]
    clauses += [f"does not fall significantly in {of['not significant']}"] if "not significant" in of else []
    clauses += [f"RISES in {of['rises']}"] if "rises" in of else []
    refused = "as it was not there, or preprocessing refused most of it"
    clauses += [f"is not testable in {of['not testable']}, {refused}"] if "not testable" in of else []
    first = tested[0] if tested else None
    unit = f", paired over {first['n']} {first['over']}" if first else ""
    few = " (fewer than 6 people: recordings of one person are not independent)" if unit.endswith("recordings") else ""
    test = "Wilcoxon's signed-rank test with Holm's correction"
    return f"{'; '.join(clauses)}. {test}{unit}{few}; the 95 % interval must leave 0 out as well."


def level(condition: Tree) -> str:
    """Of a condition, with its unit."""
    if len(condition["levels"]) > 1:
        return " + ".join(one["kind"] for one in condition["levels"])
    one = condition["levels"][0]
    return f"{one['level']:g} {one['unit']}"


def _kinds(tree: Tree) -> dict[str, list[Tree]]:
    found: dict[str, list[Tree]] = {}
    for c in tree["conditions"][1:]:
        found.setdefault(c["kind"], []).append(c)
    return found


def _percent(condition: Tree, source: str) -> str:
    return f"{100 * condition['sources'][source]['accuracy']:.1f}"


def _area(tree: Tree, kind: str) -> Tree:
    return next(a for a in tree["areas"] if a["kind"] == kind)


def _claim(tree: Tree, kind: str, weight: str) -> Tree | None:
    return next((c for c in tree["claims"] if (c["kind"], c["weight"]) == (kind, weight)), None)


def _refused(condition: Tree) -> str:
    lost = [f"{100 * share:.0f} % of {m}" for m, share in condition["refused"].items() if share > 0]
    return f" ({' and '.join(lost)} refused by preprocessing)" if lost else ""


def _weighed(claim: Tree | None, last: Tree) -> str:
    """
    Args:
        last: The strongest step of its kind, at which nothing may be left to be weighed.
    """
    if claim is None:
        return ""
    if claim["p"] is None:
        return "not testable"
    at = f" at {claim['level']:g}" if claim["step"] != last["step"] else ""
    return (
        f"{claim['clean']:.3f} to {claim['disturbed']:.3f} ({claim['low']:+.3f} to {claim['high']:+.3f}), "
        f"{claim['holm']:.2g}: {claim['verdict']}{at}"
    )


def _note(words: str) -> str:
    return f"<p>{words}</p>" if words else ""


def _introduction(tree: Tree) -> str:
    return _note(
        f"{tree['recordings']} recordings of {tree['people']} people ({tree['recordings_are']}), disturbed "
        "as recorded, before any preprocessing, and predicted again. A recording, or a modality of it, that "
        "preprocessing refuses counts as wrong for that modality, and is masked in the fusion."
    )


def _accuracies(tree: Tree, kinds: Sequence[str]) -> str:
    sources = tree["sources"]
    clean = tree["conditions"][0]
    lines = [["clean", "", *(_with_interval(clean, s) for s in sources), ""]]
    for kind in kinds:
        for c in _kinds(tree)[kind]:
            lines.append([kind, level(c), *(_with_interval(c, s) for s in sources), _refused(c).strip(" ()")])
    return table(["kind", "level", *(f"{s}, %" for s in sources), ""], lines)


def _with_interval(condition: Tree, source: str) -> str:
    found = condition["sources"][source]
    balanced = f"; balanced {100 * found['balanced_accuracy']:.1f}" if "balanced_accuracy" in found else ""
    return f"{100 * found['accuracy']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f}){balanced}"


def _areas(tree: Tree) -> str:
    lines = []
    for area in tree["areas"]:
        cells = []
        for s in tree["sources"]:
            one = area["sources"][s]
            share = "-" if one["of_clean"] is None else f"{one['of_clean']:.3f}"
            cells.append(f"{share} ({100 * one['mean_accuracy']:.1f} %)")
        lines.append([area["kind"], *cells])
    return table(["kind", *tree["sources"]], lines)


def _claims(tree: Tree, weight: str) -> str:
    lines = []
    for c in tree["claims"]:
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
                f"{c['disturbed']:.3f}",
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
        "disturbed",
        "difference (95 %)",
        "Wilcoxon p",
        "Holm",
        "rank-biserial",
        "the weight",
    ]
    return f"<h3>Weight {WEIGHTS[weight]}</h3>\n" + table(head, lines)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    # The legend above wants its width, whatever stands below.
    figure = Figure(figsize=(max(5.5, 2.9 * columns + 0.4), 2.5 * rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _curves(tree: Tree, kinds: Sequence[str], modality: str) -> str:
    """Accuracy against the steps of each kind, in a panel of its own."""
    shown = [s for s in tree["sources"] if s in ("fusion", "late_mean", modality) or modality == "all"]
    figure, panels = _panels(len(kinds))
    for axes, kind in zip(panels, kinds, strict=True):
        steps = [tree["conditions"][0], *_kinds(tree)[kind]]
        for s in shown:
            colour, line = STYLES[s]
            scores = [c["sources"][s] for c in steps]
            y = [100 * one["accuracy"] for one in scores]
            axes.plot(range(len(steps)), y, line, marker="o", ms=3, color=colour, label=s)
            low, high = ([100 * one[end] for one in scores] for end in ("low", "high"))
            if s in ("fusion", modality):
                axes.fill_between(range(len(steps)), low, high, color=colour, alpha=0.12, lw=0)
        for x, c in enumerate(steps):
            if max(c["refused"].values(), default=0) >= LEFT:
                axes.annotate("masked", (x - 0.1, 8), ha="right", fontsize=7, color="0.3")
        axes.axhline(100 * tree["chance"], color="0.5", lw=0.8, ls=":", label="chance")
        all_modalities = len(steps[-1]["levels"]) > 1
        unit = "step" if all_modalities else steps[-1]["levels"][0]["unit"]
        marks = [str(c["step"]) if all_modalities else f"{c['levels'][0]['level']:g}" for c in steps[1:]]
        axes.set_xticks(range(len(steps)), ["clean", *marks], fontsize=7)
        axes.set_title(level(steps[-1]) if all_modalities else kind.partition(".")[2], fontsize=9)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_ylim(0, 102)
        axes.tick_params(axis="y", labelsize=7)
    panels[0].set_ylabel("accuracy of recordings, %", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="outside upper center", frameon=False, fontsize=8)
    return figure_svg(figure, _describe_curves(tree, kinds, modality, shown))


def _describe_curves(tree: Tree, kinds: Sequence[str], modality: str, shown: Sequence[str]) -> str:
    clean = tree["conditions"][0]
    what = "all modalities" if modality == "all" else TITLES[modality]
    ends = []
    for kind in kinds:
        last = _kinds(tree)[kind][-1]
        ends.append(f"{kind} at {level(last)}: " + ", ".join(f"{s} {_percent(last, s)}" for s in shown))
    begins = ", ".join(f"{s} {_percent(clean, s)}" for s in shown)
    return (
        f"Accuracy in percent with {what} disturbed, with 95 % intervals; masked: preprocessing refused most of what "
        f"was disturbed. Clean: {begins}. Strongest step: {'; '.join(ends)}."
    )


def _weight_figure(tree: Tree, groups: Mapping[str, Sequence[str]]) -> str:
    figure, panels = _panels(len(groups))
    for axes, (m, kinds) in zip(panels, groups.items(), strict=True):
        count = len(_kinds(tree)[kinds[0]])
        for n, kind in enumerate(kinds):
            steps = [tree["conditions"][0], *_kinds(tree)[kind]]
            y = [c["weights"][m]["corrected"] for c in steps]
            y = [np.nan if value is None else value for value in y]
            axes.plot(range(len(steps)), y, marker="osv^Dxp*"[n % 8], ms=4, lw=1, label=kind.partition(".")[2])
        axes.set_title(f"{TITLES[m]} disturbed: its weight", fontsize=9)
        axes.set_xticks(range(count + 1), ["clean", *map(str, range(1, count + 1))], fontsize=7)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(axis="y", labelsize=7)
        axes.legend(fontsize=6.5, frameon=False)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean modality weight", fontsize=8)
    ends = []
    for kind in (k for kinds in groups.values() for k in kinds):
        claim = _claim(tree, kind, "corrected")
        ends.append(f"{kind} {_weighed(claim, _kinds(tree)[kind][-1])}")
    return figure_svg(
        figure, f"Weight of the disturbed modality, {WEIGHTS['corrected']}, at each step. {'; '.join(ends)}."
    )
