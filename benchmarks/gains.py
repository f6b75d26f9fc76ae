"""What options of a training win over one of them, for pages of benchmarks."""

from collections.abc import Mapping

import pandas as pd

from eav_ray.evaluation.comparisons import compare_differences


def format_gains(title: str, percent: Mapping[str, pd.Series], base: str) -> list[str]:
    """Format what options win over one of them, paired over people.

    Args:
        title: Of the first column.
        percent: The accuracy of each person under each option, in the same order.
        base: The option that the others are compared with; p values are adjusted for their number.
    """
    pairs = [(name, base, (values - percent[base]).round(6).to_numpy()) for name, values in percent.items()]
    compared = {c.ours: c for c in compare_differences([pair for pair in pairs if pair[0] != base])}
    lines = [
        f"| {title} | mean | SD over people | gain | better, worse | p, Holm |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in percent.items():
        row = f"| {name} | {values.mean():.1f} | {values.std(ddof=1):.1f} |"
        if name in compared:
            c = compared[name]
            gain = f"{c.difference.mean:+.1f} ({c.difference.low:+.1f} to {c.difference.high:+.1f})"
            lines.append(f"{row} {gain} | {c.n_better}, {c.n_worse} | {c.holm_p_value:.2g} |")
        else:
            lines.append(f"{row} - | - | - |")
    return lines
