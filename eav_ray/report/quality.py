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

from eav_ray.data.clean import load_standard_montage, resolve_electrodes
from eav_ray.data.manifest import Problem
from eav_ray.report.page import document, section, table

# (column, heading, format); a column is there where its modality is.
COLUMNS = (
    ("bad", "bad channels", "{:.2f}"),
    ("removed", "artefacts", "{:.2f}"),
    ("audio_db", "level dB", "{:.1f}"),
    ("audio_clipped", "clipped", "{:.2%}"),
    ("video_luma", "brightness", "{:.0f}"),
    ("video_held", "still", "{:.1%}"),
    ("video_faceless", "no face", "{:.1%}"),
)


@dataclass(frozen=True)
class Spectrum:
    """Power of the EEG before and after cleaning, of some recordings: microvolts squared per hertz, decibel."""

    hz_before: np.ndarray
    before: np.ndarray  # (recordings, frequencies), mean over channels
    hz_after: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Quality:
    """All that the page shows.

    Args:
        recordings: One row a recording, as `windows.cut` measured them, with `subject`.
        channels: EEG channels of the data set.
        frames: Example frames, (n, height, width, 3) uint8, one a person; faces are personal data, so they are opt-in.
    """

    classes: tuple[str, ...]
    recordings: Sequence[dict[str, Any]]
    problems: tuple[Problem, ...]
    channels: tuple[str, ...] = ()
    spectrum: Spectrum | None = None
    frames: dict[str, np.ndarray] | None = None


def summarize_quality_per_subject(quality: Quality) -> pd.DataFrame:
    """One row a person: recordings, windows, means over recordings of what was measured, EEG unit, problems."""
    table = pd.DataFrame(list(quality.recordings))
    if "eeg_bad" in table:
        table["bad"] = table["eeg_bad"].map(lambda bad: len(bad) if isinstance(bad, dict) else np.nan)
    if "eeg_removed" in table:
        table["removed"] = table["eeg_removed"].map(lambda found: len(found) if isinstance(found, list) else np.nan)
    measured = [c for c, _, _ in COLUMNS if c in table]
    by_subject = table.groupby("subject", sort=False)
    found = by_subject[measured].mean()
    found.insert(0, "windows", by_subject["windows"].sum())
    found.insert(0, "recordings", by_subject.size())
    if "eeg_unit" in table:
        found["unit"] = by_subject["eeg_unit"].agg(
            lambda units: ", ".join(sorted({u for u in units if isinstance(u, str)}))
        )
    found["problems"] = found.index.map(Counter(p.subject for p in quality.problems)).fillna(0).astype(int)
    return found


def as_text(quality: Quality) -> str:
    """A line a person."""
    summary = summarize_quality_per_subject(quality)
    shown = [(c, title, form) for c, title, form in COLUMNS if c in summary]
    head = f"{'person':14}{'recordings':>11}{'windows':>9}" + "".join(f"{title:>14}" for _, title, _ in shown)
    lines = [head + (f"{'unit':>12}" if "unit" in summary else "") + f"{'problems':>10}"]
    for name, row in summary.iterrows():
        values = "".join(f"{form.format(row[c]) if row[c] == row[c] else '-':>14}" for c, _, form in shown)
        unit = f"{row['unit']:>12}" if "unit" in summary else ""
        lines.append(f"{name:14}{row['recordings']:>11}{row['windows']:>9}{values}{unit}{row['problems']:>10}")
    return "\n".join(lines)


def as_html(quality: Quality) -> str:
    """One page that needs no other file."""
    matplotlib.use("agg")
    parts = [f"<h1>Quality of {len(quality.recordings)} recordings</h1>", _render_subjects(quality), _classes(quality)]
    bad = [q["eeg_bad"] for q in quality.recordings if "eeg_bad" in q]
    if bad:
        parts.append(section("Bad EEG channels", _head(bad, quality.channels), _reasons(bad)))
    if quality.spectrum is not None:
        parts.append(section("EEG spectrum, before and after", _picture(_spectrum(quality.spectrum))))
    levels = [q["audio_db"] for q in quality.recordings if "audio_db" in q]
    if levels:
        parts.append(section("Audio level", _picture(_histogram(levels, "RMS level, dB of full scale"))))
    if quality.frames:
        parts.append(section("One frame a person", _picture(_frames(quality.frames))))
    parts.append(_problems(quality.problems))
    return document("Quality of recordings", parts)


def _render_subjects(quality: Quality) -> str:
    summary = summarize_quality_per_subject(quality)
    shown = [(c, title, form) for c, title, form in COLUMNS if c in summary]
    rows = []
    for name, row in summary.iterrows():
        cells = [form.format(row[c]) if row[c] == row[c] else "-" for c, _, form in shown]
        unit = [str(row["unit"])] if "unit" in summary else []
        rows.append([str(name), str(row["recordings"]), str(row["windows"]), *cells, *unit, str(row["problems"])])
    titles = [title for _, title, _ in shown] + (["EEG unit"] if "unit" in summary else [])
    note = (
        "<p>Means over recordings. Clipped: share of samples at full scale. Still: frames equal to the one before.</p>"
    )
    return section("People", table(["person", "recordings", "windows", *titles, "problems"], rows), note)


def _classes(quality: Quality) -> str:
    counts: dict[str, Counter[int]] = {}
    for q in quality.recordings:
        counts.setdefault(q["subject"], Counter())[q["label"]] += 1
    rows = [[name, *(str(c[k]) for k in range(len(quality.classes)))] for name, c in counts.items()]
    total = sum(counts.values(), Counter())
    rows.append(["all", *(str(total[k]) for k in range(len(quality.classes)))])
    return section("Recordings per class", table(["person", *quality.classes], rows))


def _head(bad: list[dict[str, str]], channels: tuple[str, ...]) -> str:
    """A map of the head: in which share of recordings each channel was bad."""
    share = np.array([sum(name in b for b in bad) / len(bad) for name in channels])
    at = resolve_electrodes(channels)
    placed = [i for i, site in enumerate(at) if site]
    if len(placed) < 4:
        return "<p>The positions of these channels are not known, so there is no map.</p>"
    info = mne.create_info([at[i] for i in placed], 100.0, "eeg")
    info.set_montage(load_standard_montage())
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    top = max(0.01, float(share[placed].max()))
    image, _ = mne.viz.plot_topomap(
        share[placed] * 100,
        info,
        axes=axes,
        show=False,
        cmap="Reds",
        vlim=(0, top * 100),
        contours=0,
        names=[at[i] for i in placed],
        sensors=True,  # without them MNE leaves the names out
    )
    figure.colorbar(image, ax=axes, label="bad in % of recordings", shrink=0.7)
    return _picture(figure)


def _reasons(bad: list[dict[str, str]]) -> str:
    found = Counter((name, reason) for b in bad for name, reason in b.items())
    rows = [[name, reason, str(n), f"{n / len(bad):.1%}"] for (name, reason), n in found.most_common(15)]
    return table(["channel", "reason", "recordings", "share"], rows) if rows else "<p>None.</p>"


def _spectrum(s: Spectrum) -> Figure:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for hz, power, name in ((s.hz_before, s.before, "before"), (s.hz_after, s.after, "after")):
        axes.plot(hz, np.median(power, axis=0), label=f"{name}, median of {len(power)} recordings")
        axes.fill_between(hz, np.percentile(power, 10, axis=0), np.percentile(power, 90, axis=0), alpha=0.2)
    axes.set(xlabel="Hz", ylabel="dB (µV²/Hz)", xlim=(0, min(100, s.hz_before[-1])))
    inside = np.concatenate([np.median(s.before, axis=0), np.median(s.after, axis=0)[s.hz_after < 45]])
    axes.set_ylim(float(inside.min()) - 10, float(inside.max()) + 5)
    axes.legend()
    return figure


def _histogram(values: Sequence[float], label: str) -> Figure:
    figure = Figure(figsize=(7, 2.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=40)
    axes.set(xlabel=label, ylabel="recordings")
    return figure


def _frames(frames: dict[str, np.ndarray]) -> Figure:
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


def _problems(problems: tuple[Problem, ...]) -> str:
    if not problems:
        return section("Set aside", "<p>Nothing.</p>")
    rows = [[p.subject, p.recording, p.file, p.reason] for p in problems]
    return section(f"Set aside: {len(rows)}", table(["person", "recording", "file", "why"], rows, "left"))


def _picture(figure: Figure) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}">'
