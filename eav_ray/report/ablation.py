"""What each part of an experiment is worth: its variants beside it, on the same recordings, paired over people."""

import html
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import Experiment
from eav_ray.report.page import figure_svg, section, table
from eav_ray.report.statistics import ALPHA, MIN_SUBJECTS, Paired, against, holm, interval
from eav_ray.report.table import correct_per_recording
from eav_ray.training.metrics import compute_scores
from eav_ray.training.variants import (
    ABLATION_PARTS,
    BASE_VARIANT,
    AblationVariant,
    format_masked_name,
    format_subset_name,
    list_modality_subsets,
)

SOURCE = "fusion"  # of a model of one modality its only logits
ID = ["subject", "recording"]
TITLES = {
    "subsets": "Modality subsets",
    "kinds": "Kinds of fusion",
    "dropout": "Modality dropout",
    "positions": "Time marks of tokens",
    "sizes": "Sizes",
}
COLOURS = {"retrained": "C0", "masked": "C1"}


def comparisons(
    predictions: pd.DataFrame, made: Sequence[AblationVariant], base: Experiment, costs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The part of an ablation's results that is told by its predictions, of plain lists, dictionaries and numbers.

    Each group is compared on the recordings that all of it could score, its own variants and what they are compared
    with; Holm's correction is for the comparisons of a group.

    Args:
        predictions: One row a window: `variant`, subject, recording, label and the logits of `fusion`.
        made: The variants; one without predictions is left out, and named in `missing`.
        costs: Of each variant, by its name.
    Returns:
        groups: name -> how many people and recordings; variants: an entry for each, in its group, which has the
        experiment itself first; eeg: each subset with EEG against the same without; missing: names.
    """
    of = {str(name): windows for name, windows in predictions.groupby("variant")}
    right = {n: correct_per_recording(w, [SOURCE]).set_index(ID)[SOURCE] for n, w in of.items()}
    found: dict[str, Any] = {"groups": {}, "variants": [], "eeg": []}
    found["missing"] = [v.name for v in made if v.name not in right]
    for group in [g for g in ABLATION_PARTS if any(v.group == g for v in made)]:
        members = [v for v in made if v.group == group and {v.name, v.reference} <= right.keys()]
        if BASE_VARIANT not in right or not members:
            continue
        names = list(dict.fromkeys([BASE_VARIANT, *(v.reference for v in members), *(v.name for v in members)]))
        common = pd.concat({n: right[n] for n in names}, axis=1, join="inner").reset_index()
        if common.empty:
            found["missing"] += [v.name for v in members]
            continue
        found["groups"][group] = {"people": int(common["subject"].nunique()), "recordings": len(common)}
        shown = [next(v for v in made if v.name == BASE_VARIANT), *members]
        pairs = paired(common, [(v.name, v.reference) for v in members])
        for variant, one in zip(shown, [None, *pairs], strict=True):
            windows = of[variant.name].merge(common[ID], on=ID)
            found["variants"].append(
                {
                    "group": group,
                    "name": variant.name,
                    "how": variant.method if variant.name != BASE_VARIANT else "as given",
                    "size": variant.size,
                    "changes": variant.changes,
                    "modalities": variant.list_tested_modalities(base),
                    "accuracy": _finite(asdict(interval(common, variant.name))),
                    "balanced_accuracy": _number(compute_scores(windows)["recording_balanced_accuracy"]),
                    "against": comparison_to_dict(one) if one else None,
                    "cost": costs.get(variant.name, {}),
                }
            )
        found["eeg"] += _eeg(common, group, members, base, costs)
    return found


def paired(common: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[Paired]:
    """Each pair's first against its second, over people, with Holm's correction for all of them.

    Args:
        common: One row a recording: `subject`, and a column of rights for each name.
    """
    alone = [against(common, ours, {other: common[other]})[0] for ours, other in pairs]
    adjusted = holm([one.p_value for one in alone])
    return [replace(one, holm=p) for one, p in zip(alone, adjusted, strict=True)]


def comparison_to_dict(one: Paired) -> dict[str, Any]:
    """A comparison, as it is kept."""
    facts = {
        "other": one.other,
        "people": one.n_subjects,
        "p_value": one.p_value,
        "holm": one.holm,
        "effect": one.effect,
    }
    return _finite(asdict(one.difference) | facts) | {"significant": one.significant, "verdict": verdict(one)}


def verdict(one: Paired) -> str:
    if one.n_subjects < MIN_SUBJECTS:
        return f"{one.n_subjects} people: none could be significant"
    return f"significant (Holm p < {ALPHA:g})" if one.significant else "not significant"


def _eeg(
    common: pd.DataFrame,
    group: str,
    members: Sequence[AblationVariant],
    base: Experiment,
    costs: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every subset with EEG against the same without it."""
    if "eeg" not in base.data.modalities:
        return []
    whole = tuple(sorted(base.data.modalities))
    rows: list[tuple[str, str, str, str]] = []  # how, size, with, without
    if group == "subsets":
        for how, name in (("retrained", format_subset_name), ("masked", format_masked_name)):
            for some in (*list_modality_subsets(base), whole):
                rest = [m for m in some if m != "eeg"]
                if "eeg" in some and rest:
                    rows.append((how, BASE_VARIANT, BASE_VARIANT if some == whole else name(some), name(rest)))
    if group == "sizes":
        sizes = dict.fromkeys(v.size for v in members)
        rows = [("retrained", size, size, f"{size} without eeg") for size in sizes]
    rows = [row for row in rows if {row[2], row[3]} <= set(common.columns)]
    if not rows:
        return []
    found = []
    for (how, size, ours, other), one in zip(rows, paired(common, [(r[2], r[3]) for r in rows]), strict=True):
        extra = _extra(costs.get(ours, {}), costs.get(other, {})) if how == "retrained" else {}
        found.append({"group": group, "how": how, "size": size, "with": ours, "without": other, "extra": extra})
        found[-1]["difference"] = comparison_to_dict(one)
    return found


def _extra(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = [k for k in ("parameters", "gmac", "seconds", "latency_ms") if k in ours and k in other]
    return {k: ours[k] - other[k] for k in both if ours[k] is not None and other[k] is not None}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: nothing stands for it."""
    return {k: _number(v) if isinstance(v, float) else v for k, v in numbers.items()}


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def p_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def text(tree: dict[str, Any]) -> str:
    """For the terminal: a table a group."""
    lines = []
    for group in [g for g in ABLATION_PARTS if g in tree["groups"]]:
        size = tree["groups"][group]
        wide = max(len(v["name"]) for v in _of(tree, group)) + 2
        lines += [
            "",
            f"{TITLES[group]}: {size['recordings']} recordings of {size['people']} people that all could score",
        ]
        lines.append(
            f"{'':{wide}}{'accuracy, %':>12}{'95 %':>14}{'against':>9}{'Holm':>8}"
            f"{'M params':>10}{'GMAC':>8}{'train s':>9}{'ms':>7}  verdict"
        )
        for v in _of(tree, group):
            a, d, c = v["accuracy"], v["against"], v["cost"]
            spread = f"{percent(a['low'])} to {percent(a['high'])}"
            cells = f"{percent(a['mean']):>12}{spread:>14}{points(d['mean']) if d else '':>9}"
            cells += f"{p_text(d['holm']) if d else '':>8}{cost_cells(c)}  {d['verdict'] if d else ''}"
            lines.append(f"{v['name']:{wide}}{cells}".rstrip())
    for pair in tree["eeg"]:
        d, extra = pair["difference"], pair["extra"]
        price = ""
        if extra:
            parts = [f"{extra['parameters'] / 1e6:+.3g} M parameters", f"{extra['gmac']:+.3g} GMAC"]
            parts += [f"{extra['latency_ms']:+.1f} ms"] if "latency_ms" in extra else []
            price = "; costs " + ", ".join(parts)
        lines += [""] if pair is tree["eeg"][0] else []
        spread = f"{points(d['low'])} to {points(d['high'])}"
        who = f"{pair['with']} against {pair['without']} ({pair['how']})"
        lines.append(f"EEG: {who}: {points(d['mean'])} points (95 % {spread}), {d['verdict']}{price}")
    lines += [f"not compared, of want of recordings that all could score: {n}" for n in tree["missing"]]
    return "\n".join(lines)


def cost_cells(cost: dict[str, Any]) -> str:
    if not cost:
        return f"{'':34}"
    seconds = "-" if cost.get("seconds") is None else f"{cost['seconds']:.0f}"
    return f"{cost['parameters'] / 1e6:>10.3g}{cost['gmac']:>8.3g}{seconds:>9}{cost['latency_ms']:>7.1f}"


def _of(tree: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [v for v in tree["variants"] if v["group"] == group]


def sections(tree: dict[str, Any]) -> list[str]:
    """Of the page, one for all subsets and parts.

    Args:
        tree: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    made = []
    if "subsets" in tree["groups"]:
        note = (
            "Each subset trained alone, and the model of all modalities with the others hidden when it is tested: what "
            "is lost without a modality, and how well the whole stands its absence."
        )
        made.append(_section(tree, "subsets", note, figure_svg(_subset_figure(tree), _describe_subsets(tree))))
    rest = [g for g in ("kinds", "dropout", "positions", "sizes") if g in tree["groups"]]
    notes = {
        "kinds": "single_token is what the reference's released code runs: attention over one token, whose weight is "
        "1 whatever the sample, so that it is a linear map.",
        "dropout": "With modalities hidden, each is against the experiment of which the same are hidden.",
        "positions": "What the fusion is told of when something was said; encoders know of time by themselves.",
        "sizes": "Widths and depths of encoders and fusion together, all from fresh weights.",
    }
    return made + [
        _section(tree, group, notes[group], figure_svg(_forest(tree, group), _describe_forest(tree, group)))
        for group in rest
    ]


def _section(tree: dict[str, Any], group: str, note: str, figure: str) -> str:
    size = tree["groups"][group]
    where = f"{size['recordings']} test recordings of {size['people']} people, which all of these could score."
    return section(
        f"Ablation: {TITLES[group].lower()}", f"<p>{html.escape(note)} {where}</p>", figure, _table(tree, group)
    )


def _table(tree: dict[str, Any], group: str) -> str:
    head = ["", "how", "accuracy, %", "SD over people", "95 %", "balanced, %"]
    head += ["difference, points", "95 % of it", "against", "p", "Holm", "rank-biserial", ""]
    lines = []
    for v in _of(tree, group):
        a, d = v["accuracy"], v["against"]
        row = [v["name"], v["how"], percent(a["mean"]), percent(a["sd"])]
        row += [f"{percent(a['low'])} to {percent(a['high'])}", percent(v["balanced_accuracy"])]
        if d:
            row += [points(d["mean"]), f"{points(d['low'])} to {points(d['high'])}", d["other"]]
            row += [p_text(d["p_value"]), p_text(d["holm"]), f"{d['effect']:+.2f}", d["verdict"]]
        lines.append(row + [""] * (len(head) - len(row)))
    return table(head, lines)


def _subset_figure(tree: dict[str, Any]) -> Figure:
    """Accuracy of each subset, trained alone and masked; the line is the whole."""
    entries = _of(tree, "subsets")
    whole, rest = entries[0], entries[1:]
    rows = list(dict.fromkeys(tuple(v["modalities"]) for v in rest))
    figure = Figure(figsize=(7.5, 1.0 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for v in rest:
        lower = v["how"] == "masked"
        at = rows.index(tuple(v["modalities"])) + (0.15 if lower else -0.15)
        _point(axes, v["accuracy"], at, COLOURS[v["how"]], "s" if lower else "o")
    axes.axvline(100 * whole["accuracy"]["mean"], color="0.3", lw=1)
    axes.plot([], [], "o", color=COLOURS["retrained"], label="trained alone")
    axes.plot([], [], "s", color=COLOURS["masked"], label="of the whole, others hidden")
    axes.plot([], [], color="0.3", lw=1, label="whole")
    axes.set_yticks(range(len(rows)), [format_subset_name(r) for r in rows])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of recordings, %; 95 % intervals over people and recordings")
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _point(axes: Any, interval: dict[str, Any], at: float, colour: str, marker: str) -> None:
    axes.plot([100 * interval["low"], 100 * interval["high"]], [at, at], color=colour, lw=1.4)
    axes.plot([100 * interval["mean"]], [at], marker, color=colour, ms=5)


def _describe_subsets(tree: dict[str, Any]) -> str:
    whole, *rest = _of(tree, "subsets")
    parts = [f"{v['name']} {percent(v['accuracy']['mean'])} %" for v in rest]
    return f"Accuracy of each modality subset. All together {percent(whole['accuracy']['mean'])} %; {'; '.join(parts)}."


def _forest(tree: dict[str, Any], group: str) -> Figure:
    """Difference of each variant to what it is compared with."""
    entries = [v for v in _of(tree, group) if v["against"]]
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for at, v in enumerate(entries):
        d = v["against"]
        _point(axes, d, at, COLOURS[v["how"]] if d["significant"] else "0.55", "s" if v["how"] == "masked" else "o")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(entries)), [v["name"] for v in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="difference, points; grey: not significant", ylim=(len(entries) - 0.4, -0.6))
    return figure


def _describe_forest(tree: dict[str, Any], group: str) -> str:
    parts = [
        f"{v['name']} {points(v['against']['mean'])} points against {v['against']['other']}, {v['against']['verdict']}"
        for v in _of(tree, group)
        if v["against"]
    ]
    return f"{TITLES[group]}: {'; '.join(parts)}."
