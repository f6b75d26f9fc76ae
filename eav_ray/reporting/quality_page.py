"""What preprocessing saw of each person: a table for the terminal, and an HTML page with figures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import mne
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.data.preprocessing.electrodes import locate_channels
from eav_ray.data.recordings import Problem
from eav_ray.reporting.html import render_document, render_section, render_table

# (column, heading, format); a column is there where its modality is.
QUALITY_COLUMNS = (
    ("bad_channels", "bad channels", "{:.2f}"),
    ("removed_components", "artefacts", "{:.2f}"),
    ("audio_db", "level dB", "{:.1f}"),
    ("audio_clipped", "clipped", "{:.2%}"),
    ("video_luma", "brightness", "{:.0f}"),
    ("video_repeated", "still", "{:.1%}"),
    ("video_faceless", "no face", "{:.1%}"),
)


@dataclass(frozen=True)
class EEGSpectrum:
    """Power of the EEG before and after cleaning, of some recordings: microvolts squared per hertz, decibel."""

    hz_before: np.ndarray
    before: np.ndarray  # (recordings, frequencies), mean over channels
    hz_after: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class QualityReport:
    """All that the page shows.

    Args:
        recordings: One row a recording, as `windowing.cut_recording` measured them, with `subject`.
        channels: EEG channels of the data set.
        frames: Example frames, (n, height, width, 3) uint8, one a person; faces are personal data, so they are opt-in.
    """

    classes: tuple[str, ...]
    recordings: Sequence[dict[str, Any]]
    problems: tuple[Problem, ...]
    channels: tuple[str, ...] = ()
    spectrum: EEGSpectrum | None = None
    frames: dict[str, np.ndarray] | None = None


def summarize_quality_per_subject(report: QualityReport) -> pd.DataFrame:
    """One row a person: recordings, windows, means over recordings of what was measured, EEG unit, problems."""
    table = pd.DataFrame(list(report.recordings))
    if "eeg_bad_channel_reasons" in table:
        table["bad_channels"] = table["eeg_bad_channel_reasons"].map(
            lambda reasons: len(reasons) if isinstance(reasons, dict) else np.nan
        )
    if "eeg_removed_components" in table:
        table["removed_components"] = table["eeg_removed_components"].map(
            lambda labels: len(labels) if isinstance(labels, list) else np.nan
        )
    measured = [c for c, _, _ in QUALITY_COLUMNS if c in table]
    by_subject = table.groupby("subject", sort=False)
    summary = by_subject[measured].mean()
    summary.insert(0, "windows", by_subject["windows"].sum())
    summary.insert(0, "recordings", by_subject.size())
    if "eeg_unit" in table:
        summary["unit"] = by_subject["eeg_unit"].agg(
            lambda units: ", ".join(sorted({u for u in units if isinstance(u, str)}))
        )
    summary["problems"] = summary.index.map(Counter(p.subject for p in report.problems)).fillna(0).astype(int)
    return summary


def format_quality(report: QualityReport) -> str:
    """A line a person."""
    summary = summarize_quality_per_subject(report)
    columns = [(c, title, form) for c, title, form in QUALITY_COLUMNS if c in summary]
    head = f"{'subject':14}{'recordings':>11}{'windows':>9}" + "".join(f"{title:>14}" for _, title, _ in columns)
    lines = [head + (f"{'unit':>12}" if "unit" in summary else "") + f"{'problems':>10}"]
    for name, row in summary.iterrows():
        values = "".join(f"{form.format(row[c]) if row[c] == row[c] else '-':>14}" for c, _, form in columns)
        unit = f"{row['unit']:>12}" if "unit" in summary else ""
        lines.append(f"{name:14}{row['recordings']:>11}{row['windows']:>9}{values}{unit}{row['problems']:>10}")
    return "\n".join(lines)


def render_quality_page(report: QualityReport) -> str:
    """One page that needs no other file."""
    matplotlib.use("agg")
    parts = [
        f"<h1>Quality of {len(report.recordings)} recordings</h1>",
        _render_subjects(report),
        _render_class_counts(report),
    ]
    bad_channels = [q["eeg_bad_channel_reasons"] for q in report.recordings if "eeg_bad_channel_reasons" in q]
    if bad_channels:
        parts.append(
            render_section(
                "Bad EEG channels",
                _render_bad_channel_map(bad_channels, report.channels),
                _render_bad_channel_reasons(bad_channels),
            )
        )
    if report.spectrum is not None:
        parts.append(render_section("EEG spectrum, before and after", _render_png(_plot_spectrum(report.spectrum))))
    levels = [q["audio_db"] for q in report.recordings if "audio_db" in q]
    if levels:
        parts.append(render_section("Audio level", _render_png(_plot_histogram(levels, "RMS level, dB of full scale"))))
    if report.frames:
        parts.append(render_section("One frame a person", _render_png(_plot_frames(report.frames))))
    parts.append(_render_problems(report.problems))
    return render_document("Quality of recordings", parts)


def _render_subjects(report: QualityReport) -> str:
    summary = summarize_quality_per_subject(report)
    columns = [(c, title, form) for c, title, form in QUALITY_COLUMNS if c in summary]
    rows = []
    for name, row in summary.iterrows():
        cells = [form.format(row[c]) if row[c] == row[c] else "-" for c, _, form in columns]
        unit = [str(row["unit"])] if "unit" in summary else []
        rows.append([str(name), str(row["recordings"]), str(row["windows"]), *cells, *unit, str(row["problems"])])
    titles = [title for _, title, _ in columns] + (["EEG unit"] if "unit" in summary else [])
    note = (
        "<p>Means over recordings. Clipped: share of samples at full scale. Still: frames equal to the one before.</p>"
    )
    return render_section("People", render_table(["subject", "recordings", "windows", *titles, "problems"], rows), note)


def _render_class_counts(report: QualityReport) -> str:
    counts: dict[str, Counter[int]] = {}
    for q in report.recordings:
        counts.setdefault(q["subject"], Counter())[q["label"]] += 1
    rows = [[name, *(str(c[k]) for k in range(len(report.classes)))] for name, c in counts.items()]
    total = sum(counts.values(), Counter())
    rows.append(["all", *(str(total[k]) for k in range(len(report.classes)))])
    return render_section("Recordings per class", render_table(["subject", *report.classes], rows))


def _render_bad_channel_map(bad_channels: list[dict[str, str]], channels: tuple[str, ...]) -> str:
    """A map of the head: in which share of recordings each channel was bad."""
    bad_share = np.array([sum(name in b for b in bad_channels) / len(bad_channels) for name in channels])
    if (located := locate_channels(channels)) is None:
        return "<p>The positions of these channels are not known, so there is no map.</p>"
    known_channels, info = located
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    limit = max(0.01, float(bad_share[known_channels].max()))
    image, _ = mne.viz.plot_topomap(
        bad_share[known_channels] * 100,
        info,
        axes=axes,
        show=False,
        cmap="Reds",
        vlim=(0, limit * 100),
        contours=0,
        names=info.ch_names,
        sensors=True,  # without them MNE leaves the names out
    )
    figure.colorbar(image, ax=axes, label="bad in % of recordings", shrink=0.7)
    return _render_png(figure)


def _render_bad_channel_reasons(bad_channels: list[dict[str, str]]) -> str:
    counts = Counter((name, reason) for b in bad_channels for name, reason in b.items())
    rows = [[name, reason, str(n), f"{n / len(bad_channels):.1%}"] for (name, reason), n in counts.most_common(15)]
    return render_table(["channel", "reason", "recordings", "share"], rows) if rows else "<p>None.</p>"


def _plot_spectrum(spectrum: EEGSpectrum) -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for hz, power, name in (
        (spectrum.hz_before, spectrum.before, "before"),
        (spectrum.hz_after, spectrum.after, "after"),
    ):
        axes.plot(hz, np.median(power, axis=0), label=f"{name}, median of {len(power)} recordings")
        axes.fill_between(hz, np.percentile(power, 10, axis=0), np.percentile(power, 90, axis=0), alpha=0.2)
    axes.set(xlabel="Hz", ylabel="dB (µV²/Hz)", xlim=(0, min(100, spectrum.hz_before[-1])))
    limits = np.concatenate(
        [np.median(spectrum.before, axis=0), np.median(spectrum.after, axis=0)[spectrum.hz_after < 45]]
    )
    axes.set_ylim(float(limits.min()) - 10, float(limits.max()) + 5)
    axes.legend()
    return figure


def _plot_histogram(values: Sequence[float], label: str) -> Figure:
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=40)
    axes.set(xlabel=label, ylabel="recordings")
    return figure


def _plot_frames(frames: dict[str, np.ndarray]) -> Figure:
    columns = min(6, len(frames))
    rows = -(-len(frames) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (name, frame) in zip(grid, frames.items(), strict=False):
        axes.imshow(frame)
        axes.set_title(name, fontsize=8)
    return figure


def _render_problems(problems: tuple[Problem, ...]) -> str:
    if not problems:
        return render_section("Set aside", "<p>Nothing.</p>")
    rows = [[p.subject, p.recording, p.file, p.reason] for p in problems]
    return render_section(
        f"Set aside: {len(rows)}", render_table(["subject", "recording", "file", "why"], rows, "left")
    )


def _render_png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
