"""A model card (Mitchell et al. 2019, doi:10.1145/3287560.3287596) from the numbers of `results.json`."""

import json
from collections.abc import Mapping
from typing import Any

from eav_ray.reporting.formatting import format_interval, format_p_value, format_percent, format_points


def render_model_card(results: Mapping[str, Any]) -> str:
    """Markdown."""
    accuracy, provenance = results["accuracy"], results["provenance"]
    lines = [
        f"# {results['title']}",
        "",
        "## Model",
        "",
        f"- {results['description']}",
        f"- Modalities: {', '.join(results['modalities'])}. Classes: {', '.join(results['classes'])}.",
        *(f"- {name}: {value}" for name, value in results["model"].items()),
        "",
        "## Meant for",
        "",
        "Research on emotion recognition from EEG, speech and face video, on windows that are preprocessed as its "
        "checkpoint says. A missing modality is masked. It is not meant for decisions about people: emotions that "
        "somebody was asked to show in a laboratory are not what people feel.",
        "",
        "## Data",
        "",
        *(f"- {name}: {value}" for name, value in results["data"].items()),
        "",
        "## Results",
        "",
        f"{accuracy['recordings']} recordings of {accuracy['n_subjects']} people {results['separation']}. Percent of "
        f"recordings; chance {format_percent(accuracy['chance']['level'])}.",
        "",
        "| source | mean | SD over people | 95 % interval | balanced | macro-F1 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {s} | {format_percent(o['mean'])} | {format_percent(o['sd'])} | {format_interval(o['interval'])} | "
            f"{format_percent(o['balanced'])} | {format_percent(o['macro_f1'])} |"
            for s, o in accuracy["sources"].items()
        ),
        "",
        *(
            f"- {c['ours']} against {c['other']}: {format_points(c['difference'])} points, Holm p "
            f"{format_p_value(c['holm'])}: {c['verdict']}"
            for c in results.get("comparisons", {}).get("fusion", [])
        ),
        "",
        "## Limits",
        "",
    ]
    worst = results.get("worst_subjects") or []
    main_source = list(accuracy["sources"])[-1]
    if worst:
        lowest = ", ".join(f"{one['subject']} {format_percent(one[main_source])} %" for one in worst)
        lines.append(f"- The lowest of all people: {lowest}.")
    lines += [f"- {one['text']}" for one in results.get("modality_collapse") or []]
    ece = results["calibration"].get(main_source, {}).get("raw", {}).get("ece") if results.get("calibration") else None
    if ece is not None:
        lines.append(f"- Expected calibration error {ece:.3f}: its probabilities are to be read with that in mind.")
    lines += [
        f"- Leak audit passed, sha256 {results['audit']['sha256']}.",
        "",
        "## Reproduce",
        "",
        f"    {provenance['command']}",
        "",
        *(f"- {k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in provenance.items() if k != "command"),
        "",
    ]
    return "\n".join(lines)
