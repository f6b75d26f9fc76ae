"""Show the numbers that are predicted as the recordings of a data set have them: a table, and how they are spread."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eav_ray.reporting.figures import make_panels
from eav_ray.reporting.html import Drawing, Table
from eav_ray.words import format_count

NUMBER_FORMAT = ".4g"
ALL = "all"  # the last row
MAX_BARS = 15  # different values, at most, that have a bar each
N_BINS = 30  # of a histogram of more


def build_target_table(targets: Sequence[str], values: Mapping[str, np.ndarray]) -> Table:
    """Build a table with a row a subject, and one of all: recordings, and mean, SD, minimum and maximum of each target.

    Args:
        targets: Their names.
        values: (recordings, targets) of each subject. SD is that of the recordings that there are, divided by their
            number.
    """
    head = ["subject", "recordings"]
    for name in targets:
        head += [f"{name} mean", "SD", "min", "max"]
    parts = list(values.items())
    if len(parts) > 1:
        parts.append((ALL, np.concatenate(list(values.values()))))
    rows = []
    for subject, x_NK in parts:
        measures = np.stack([x_NK.mean(0), x_NK.std(0), x_NK.min(0), x_NK.max(0)], 1)  # (targets, 4)
        rows.append([subject, str(len(x_NK)), *(format(x, NUMBER_FORMAT) for x in measures.ravel().tolist())])
    return Table(head, rows)


def draw_target_distributions(targets: Sequence[str], values_NK: np.ndarray) -> Drawing:
    """Draw how many recordings have which value, a panel a target: (recordings, targets)."""
    caption = "; ".join(
        f"{name} is {np.median(x):{NUMBER_FORMAT}} in the median recording, from {x.min():{NUMBER_FORMAT}} to "
        f"{x.max():{NUMBER_FORMAT}}"
        for name, x in zip(targets, values_NK.T, strict=True)
    )
    return Drawing(
        _plot_distributions(targets, values_NK), f"Counts of {format_count(len(values_NK), 'recording')}: {caption}."
    )


def _plot_distributions(targets: Sequence[str], values_NK: np.ndarray) -> Figure:
    titles = [name.replace("$", r"\$") for name in targets]  # which would begin a formula
    figure, panels = make_panels(titles, 3, (3.2, 2.4))
    for axes, x in zip(panels, values_NK.T, strict=False):
        found, counts = np.unique(x, return_counts=True)
        if len(found) <= MAX_BARS:
            width = 0.8 * float(np.diff(found).min()) if len(found) > 1 else 0.8
            axes.bar(found, counts, width=width)
        else:
            axes.hist(x, bins=N_BINS)
        axes.set(ylabel="recordings")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
