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
from eav_ray.report.page import render_figure, render_section, render_table
from eav_ray.report.statistics import (
    ALPHA,
    MIN_SUBJECTS,
    PairedComparison,
    compare_paired,
    compute_bootstrap_interval,
    holm,
)
from eav_ray.report.table import mark_correct_recordings
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
ID_COLUMNS = ["subject", "recording"]
GROUP_TITLES = {
    "subsets": "Modality subsets",
    "kinds": "Kinds of fusion",
    "dropout": "Modality dropout",
    "positions": "Time marks of tokens",
    "sizes": "Sizes",
}
MODE_COLORS = {"retrained": "C0", "masked": "C1"}


def compare_variants(
    predictions: pd.DataFrame, variants: Sequence[AblationVariant], base: Experiment, costs: dict[str, dict[str, Any]]
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
    windows_by_variant = {str(name): windows for name, windows in predictions.groupby("variant")}
    correct_by_variant = {
        n: mark_correct_recordings(w, [SOURCE]).set_index(ID_COLUMNS)[SOURCE] for n, w in windows_by_variant.items()
    }
    results: dict[str, Any] = {"groups": {}, "variants": [], "eeg": []}
    results["missing"] = [v.name for v in variants if v.name not in correct_by_variant]
    for group in [g for g in ABLATION_PARTS if any(v.group == g for v in variants)]:
        members = [v for v in variants if v.group == group and {v.name, v.reference} <= correct_by_variant.keys()]
        if BASE_VARIANT not in correct_by_variant or not members:
            continue
        names = list(dict.fromkeys([BASE_VARIANT, *(v.reference for v in members), *(v.name for v in members)]))
        common = pd.concat({n: correct_by_variant[n] for n in names}, axis=1, join="inner").reset_index()
        if common.empty:
            results["missing"] += [v.name for v in members]
            continue
        results["groups"][group] = {"people": int(common["subject"].nunique()), "recordings": len(common)}
        compared = [next(v for v in variants if v.name == BASE_VARIANT), *members]
        pairs = compare_variant_pairs(common, [(v.name, v.reference) for v in members])
        for variant, comparison in zip(compared, [None, *pairs], strict=True):
            windows = windows_by_variant[variant.name].merge(common[ID_COLUMNS], on=ID_COLUMNS)
            results["variants"].append(
                {
                    "group": group,
                    "name": variant.name,
                    "how": variant.method if variant.name != BASE_VARIANT else "as given",
                    "size": variant.size,
                    "changes": variant.changes,
                    "modalities": variant.list_tested_modalities(base),
                    "accuracy": _replace_non_finite(asdict(compute_bootstrap_interval(common, variant.name))),
                    "balanced_accuracy": _finite_or_none(compute_scores(windows)["recording_balanced_accuracy"]),
                    "against": comparison_to_dict(comparison) if comparison else None,
                    "cost": costs.get(variant.name, {}),
                }
            )
        results["eeg"] += _compare_with_and_without_eeg(common, group, members, base, costs)
    return results


def compare_variant_pairs(common: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[PairedComparison]:
    """Each pair's first against its second, over people, with Holm's correction for all of them.

    Args:
        common: One row a recording: `subject`, and a column of rights for each name.
    """
    uncorrected = [compare_paired(common, ours, {other: common[other]})[0] for ours, other in pairs]
    adjusted = holm([one.p_value for one in uncorrected])
    return [replace(one, holm_p_value=p) for one, p in zip(uncorrected, adjusted, strict=True)]


def comparison_to_dict(comparison: PairedComparison) -> dict[str, Any]:
    """A comparison, as it is kept."""
    statistics = {
        "other": comparison.other,
        "people": comparison.n_subjects,
        "p_value": comparison.p_value,
        "holm": comparison.holm_p_value,
        "effect": comparison.effect,
    }
    return _replace_non_finite(asdict(comparison.difference) | statistics) | {
        "significant": comparison.significant,
        "verdict": describe_significance(comparison),
    }


def describe_significance(comparison: PairedComparison) -> str:
    if comparison.n_subjects < MIN_SUBJECTS:
        return f"{comparison.n_subjects} people: none could be significant"
    return f"significant (Holm p < {ALPHA:g})" if comparison.significant else "not significant"


def _compare_with_and_without_eeg(
    common: pd.DataFrame,
    group: str,
    members: Sequence[AblationVariant],
    base: Experiment,
    costs: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every subset with EEG against the same without it."""
    if "eeg" not in base.data.modalities:
        return []
    all_modalities = tuple(sorted(base.data.modalities))
    rows: list[tuple[str, str, str, str]] = []  # how, size, with, without
    if group == "subsets":
        for how, name in (("retrained", format_subset_name), ("masked", format_masked_name)):
            for some in (*list_modality_subsets(base), all_modalities):
                rest = [m for m in some if m != "eeg"]
                if "eeg" in some and rest:
                    rows.append((how, BASE_VARIANT, BASE_VARIANT if some == all_modalities else name(some), name(rest)))
    if group == "sizes":
        sizes = dict.fromkeys(v.size for v in members)
        rows = [("retrained", size, size, f"{size} without eeg") for size in sizes]
    rows = [row for row in rows if {row[2], row[3]} <= set(common.columns)]
    if not rows:
        return []
    results = []
    for (how, size, ours, other), one in zip(
        rows, compare_variant_pairs(common, [(r[2], r[3]) for r in rows]), strict=True
    ):
        extra_cost = _compute_extra_cost(costs.get(ours, {}), costs.get(other, {})) if how == "retrained" else {}
        results.append({"group": group, "how": how, "size": size, "with": ours, "without": other, "extra": extra_cost})
        results[-1]["difference"] = comparison_to_dict(one)
    return results


def _compute_extra_cost(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    shared_keys = [k for k in ("parameters", "gmac", "seconds", "latency_ms") if k in ours and k in other]
    return {k: ours[k] - other[k] for k in shared_keys if ours[k] is not None and other[k] is not None}


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _replace_non_finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: nothing stands for it."""
    return {k: _finite_or_none(v) if isinstance(v, float) else v for k, v in numbers.items()}


def format_percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def format_points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def format_p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def format_ablation(results: dict[str, Any]) -> str:
    """For the terminal: a table a group."""
    lines = []
    for group in [g for g in ABLATION_PARTS if g in results["groups"]]:
        size = results["groups"][group]
        name_width = max(len(v["name"]) for v in _select_group(results, group)) + 2
        lines += [
            "",
            f"{GROUP_TITLES[group]}: {size['recordings']} recordings of {size['people']} people that all could score",
        ]
        lines.append(
            f"{'':{name_width}}{'accuracy, %':>12}{'95 %':>14}{'against':>9}{'Holm':>8}"
            f"{'M params':>10}{'GMAC':>8}{'train s':>9}{'ms':>7}  verdict"
        )
        for v in _select_group(results, group):
            a, d, c = v["accuracy"], v["against"], v["cost"]
            spread = f"{format_percent(a['low'])} to {format_percent(a['high'])}"
            cells = f"{format_percent(a['mean']):>12}{spread:>14}{format_points(d['mean']) if d else '':>9}"
            cells += f"{format_p_value(d['holm']) if d else '':>8}{format_cost_cells(c)}  {d['verdict'] if d else ''}"
            lines.append(f"{v['name']:{name_width}}{cells}".rstrip())
    for pair in results["eeg"]:
        d, extra_cost = pair["difference"], pair["extra"]
        cost_note = ""
        if extra_cost:
            parts = [f"{extra_cost['parameters'] / 1e6:+.3g} M parameters", f"{extra_cost['gmac']:+.3g} GMAC"]
            parts += [f"{extra_cost['latency_ms']:+.1f} ms"] if "latency_ms" in extra_cost else []
            cost_note = "; costs " + ", ".join(parts)
        lines += [""] if pair is results["eeg"][0] else []
        spread = f"{format_points(d['low'])} to {format_points(d['high'])}"
        label = f"{pair['with']} against {pair['without']} ({pair['how']})"
        lines.append(f"EEG: {label}: {format_points(d['mean'])} points (95 % {spread}), {d['verdict']}{cost_note}")
    lines += [f"not compared, of want of recordings that all could score: {n}" for n in results["missing"]]
    return "\n".join(lines)


def format_cost_cells(cost: dict[str, Any]) -> str:
    if not cost:
        return f"{'':34}"
    seconds = "-" if cost.get("seconds") is None else f"{cost['seconds']:.0f}"
    return f"{cost['parameters'] / 1e6:>10.3g}{cost['gmac']:>8.3g}{seconds:>9}{cost['latency_ms']:>7.1f}"


def _select_group(results: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [v for v in results["variants"] if v["group"] == group]


def render_ablation_sections(results: dict[str, Any]) -> list[str]:
    """Of the page, one for all subsets and parts.

    Args:
        tree: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    rendered = []
    if "subsets" in results["groups"]:
        note = (
            "Each subset trained alone, and the model of all modalities with the others hidden when it is tested: what "
            "is lost without a modality, and how well the whole stands its absence."
        )
        rendered.append(
            _render_group(results, "subsets", note, render_figure(_plot_subsets(results), _describe_subsets(results)))
        )
    rest = [g for g in ("kinds", "dropout", "positions", "sizes") if g in results["groups"]]
    notes = {
        "kinds": "single_token is what the reference's released code runs: attention over one token, whose weight is "
        "1 whatever the sample, so that it is a linear map.",
        "dropout": "With modalities hidden, each is against the experiment of which the same are hidden.",
        "positions": "What the fusion is told of when something was said; encoders know of time by themselves.",
        "sizes": "Widths and depths of encoders and fusion together, all from fresh weights.",
    }
    return rendered + [
        _render_group(
            results, group, notes[group], render_figure(_plot_forest(results, group), _describe_forest(results, group))
        )
        for group in rest
    ]


def _render_group(results: dict[str, Any], group: str, note: str, figure: str) -> str:
    size = results["groups"][group]
    test_set_note = f"{size['recordings']} test recordings of {size['people']} people, which all of these could score."
    return render_section(
        f"Ablation: {GROUP_TITLES[group].lower()}",
        f"<p>{html.escape(note)} {test_set_note}</p>",
        figure,
        _render_group_table(results, group),
    )


def _render_group_table(results: dict[str, Any], group: str) -> str:
    head = ["", "how", "accuracy, %", "SD over people", "95 %", "balanced, %"]
    head += ["difference, points", "95 % of it", "against", "p", "Holm", "rank-biserial", ""]
    lines = []
    for v in _select_group(results, group):
        a, d = v["accuracy"], v["against"]
        row = [v["name"], v["how"], format_percent(a["mean"]), format_percent(a["sd"])]
        row += [f"{format_percent(a['low'])} to {format_percent(a['high'])}", format_percent(v["balanced_accuracy"])]
        if d:
            row += [format_points(d["mean"]), f"{format_points(d['low'])} to {format_points(d['high'])}", d["other"]]
            row += [format_p_value(d["p_value"]), format_p_value(d["holm"]), f"{d['effect']:+.2f}", d["verdict"]]
        lines.append(row + [""] * (len(head) - len(row)))
    return render_table(head, lines)


def _plot_subsets(results: dict[str, Any]) -> Figure:
    """Accuracy of each subset, trained alone and masked; the line is the whole."""
    entries = _select_group(results, "subsets")
    all_modalities, rest = entries[0], entries[1:]
    rows = list(dict.fromkeys(tuple(v["modalities"]) for v in rest))
    figure = Figure(figsize=(7.5, 1.0 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for v in rest:
        masked = v["how"] == "masked"
        at = rows.index(tuple(v["modalities"])) + (0.15 if masked else -0.15)
        _plot_interval(axes, v["accuracy"], at, MODE_COLORS[v["how"]], "s" if masked else "o")
    axes.axvline(100 * all_modalities["accuracy"]["mean"], color="0.3", lw=1)
    axes.plot([], [], "o", color=MODE_COLORS["retrained"], label="trained alone")
    axes.plot([], [], "s", color=MODE_COLORS["masked"], label="of the whole, others hidden")
    axes.plot([], [], color="0.3", lw=1, label="whole")
    axes.set_yticks(range(len(rows)), [format_subset_name(r) for r in rows])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of recordings, %; 95 % intervals over people and recordings")
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _plot_interval(axes: Any, interval: dict[str, Any], at: float, color: str, marker: str) -> None:
    axes.plot([100 * interval["low"], 100 * interval["high"]], [at, at], color=color, lw=1.4)
    axes.plot([100 * interval["mean"]], [at], marker, color=color, ms=5)


def _describe_subsets(results: dict[str, Any]) -> str:
    all_modalities, *rest = _select_group(results, "subsets")
    parts = [f"{v['name']} {format_percent(v['accuracy']['mean'])} %" for v in rest]
    return f"Accuracy of each modality subset. All together {format_percent(all_modalities['accuracy']['mean'])} %; {'; '.join(parts)}."


def _plot_forest(results: dict[str, Any], group: str) -> Figure:
    """Difference of each variant to what it is compared with."""
    entries = [v for v in _select_group(results, group) if v["against"]]
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for at, v in enumerate(entries):
        d = v["against"]
        _plot_interval(
            axes, d, at, MODE_COLORS[v["how"]] if d["significant"] else "0.55", "s" if v["how"] == "masked" else "o"
        )
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(entries)), [v["name"] for v in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="difference, points; grey: not significant", ylim=(len(entries) - 0.4, -0.6))
    return figure


def _describe_forest(results: dict[str, Any], group: str) -> str:
    parts = [
        f"{v['name']} {format_points(v['against']['mean'])} points against {v['against']['other']}, {v['against']['verdict']}"
        for v in _select_group(results, group)
        if v["against"]
    ]
    return f"{GROUP_TITLES[group]}: {'; '.join(parts)}."
