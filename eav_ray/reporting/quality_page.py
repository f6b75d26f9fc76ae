"""What preprocessing saw of each person: a table for the terminal, and an HTML page with figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.data.recordings import Problem
from eav_ray.electrodes import locate_channels
from eav_ray.reporting.figures import draw_scalp_map, make_axes, make_panels
from eav_ray.reporting.html import Page, Part, Picture, Section, Table, build_table
from eav_ray.reporting.tables import format_table
from eav_ray.reporting.target_tables import build_target_table, draw_target_distributions
from eav_ray.words import format_count

MAX_NAMED_CHANNELS = 3  # of the bad ones, in the caption of the map
CAPTION_HZ = 10.0  # whose power the caption of the spectrum names

# A column is there where its modality is.
QUALITY_COLUMNS = (
    ("bad channels", "bad_channels", ".2f"),
    ("artefacts", "removed_components", ".2f"),
    ("level dB", "audio_db", ".1f"),
    ("clipped", "audio_clipped", ".2%"),
    ("brightness", "video_luma", ".0f"),
    ("still", "video_repeated", ".1%"),
    ("no face", "video_faceless", ".1%"),
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
        targets: Where there are some, there are no classes, and each row of `recordings` has its numbers, `targets`.
        frames: Example frames, (n, height, width, 3) uint8, one a person; faces are personal data, so they are opt-in.
    """

    classes: tuple[str, ...]
    recordings: Sequence[dict[str, Any]]
    problems: tuple[Problem, ...]
    channels: tuple[str, ...] = ()
    spectrum: EEGSpectrum | None = None
    frames: dict[str, np.ndarray] | None = None
    remarks: tuple[str, ...] = ()  # on the whole data set
    targets: tuple[str, ...] = ()  # names of the numbers that are predicted in place of classes

    def collect_targets(self) -> dict[str, np.ndarray]:
        """Collect the numbers that are predicted: (recordings, targets) of each subject."""
        values: dict[str, list[list[float]]] = {}
        for q in self.recordings:
            values.setdefault(q["subject"], []).append(q["targets"])
        return {subject: np.array(rows, float) for subject, rows in values.items()}


def summarize_quality_per_subject(report: QualityReport) -> pd.DataFrame:
    """One row a person: recordings, windows, means over recordings of what was measured, EEG unit, problems."""
    table = pd.DataFrame(list(report.recordings))
    lists = {"eeg_bad_channel_reasons": "bad_channels", "eeg_removed_components": "removed_components"}
    for name, count in lists.items():
        if name in table:
            table[count] = table[name].map(lambda found: len(found) if isinstance(found, dict | list) else np.nan)
    measured = [key for _, key, _ in QUALITY_COLUMNS if key in table]
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
    """Format a line a person, and a line for everything that files say of themselves."""
    tables = [_build_subject_table(report), _build_remark_table(report)]
    if report.targets:
        tables.insert(1, build_target_table(report.targets, report.collect_targets()))
    return "\n\n".join(format_table(t) for t in tables if t.rows)


def render_quality_page(report: QualityReport) -> str:
    """Render one page that needs no other file."""
    matplotlib.use("agg")
    note = "Means over recordings. Clipped: share of samples at full scale. Still: frames equal to the one before."
    truth = Section("Recordings per class", [_build_class_table(report)])
    if report.targets:
        truth = _build_target_section(report)
    sections = [Section("People", [_build_subject_table(report), note]), truth]
    if (remarks := _build_remark_table(report)).rows:
        sections.append(Section("What files say of themselves, and was used", [remarks]))
    bad_channels = [q["eeg_bad_channel_reasons"] for q in report.recordings if "eeg_bad_channel_reasons" in q]
    if bad_channels:
        parts = [_build_bad_channel_map(bad_channels, report.channels), _build_bad_channel_table(bad_channels)]
        sections.append(Section("Bad EEG channels", parts))
    if report.spectrum is not None:
        sections.append(Section("EEG spectrum, before and after", [_build_spectrum_picture(report.spectrum)]))
    if levels := [q["audio_db"] for q in report.recordings if "audio_db" in q]:
        sections.append(Section("Audio level", [_build_level_picture(levels)]))
    if report.frames:
        caption = f"One frame of the middle of a window of each person: {', '.join(report.frames)}."
        sections.append(Section("One frame a person", [Picture(_plot_frames(report.frames), caption)]))
    sections.append(_build_problem_section(report.problems))
    return Page(
        "Quality of recordings", sections, heading=f"Quality of {format_count(len(report.recordings), 'recording')}"
    ).render()


def _build_subject_table(report: QualityReport) -> Table:
    summary = summarize_quality_per_subject(report)
    measured = [column for column in (*QUALITY_COLUMNS, ("EEG unit", "unit", "")) if column[1] in summary]
    counts = [("subject", "subject", ""), ("recordings", "recordings", ""), ("windows", "windows", "")]
    return build_table(summary.reset_index().to_dict("records"), [*counts, *measured, ("problems", "problems", "")])


def _build_remark_table(report: QualityReport) -> Table:
    """A row for each thing that files say, the most frequent first, with the first recording of which it is said."""
    said: dict[str, list[str]] = {}
    for q in report.recordings:
        for remark in q.get("remarks", ()):
            said.setdefault(remark, []).append(f"{q['subject']}/{q['recording']}")
    rows = [[remark, "all", ""] for remark in report.remarks]
    rows += [[remark, str(len(of)), of[0]] for remark, of in sorted(said.items(), key=lambda item: -len(item[1]))]
    return Table(["what files say of themselves", "recordings", "the first"], rows, left=True)


def _build_target_section(report: QualityReport) -> Section:
    values = report.collect_targets()
    parts: list[Part] = [build_target_table(report.targets, values)]
    if values:
        parts.append(draw_target_distributions(report.targets, np.concatenate(list(values.values()))))
    return Section("Numbers to be predicted", parts)


def _build_class_table(report: QualityReport) -> Table:
    counts: dict[str, Counter[int]] = {}
    for q in report.recordings:
        counts.setdefault(q["subject"], Counter())[q["label"]] += 1
    counts["all"] = sum(counts.values(), Counter())
    rows = [[name, *(str(c[k]) for k in range(len(report.classes)))] for name, c in counts.items()]
    return Table(["subject", *report.classes], rows)


def _build_bad_channel_map(bad_channels: list[dict[str, str]], channels: tuple[str, ...]) -> Part:
    """Map on the head in which share of recordings each channel was bad."""
    bad_share = np.array([sum(name in b for b in bad_channels) / len(bad_channels) for name in channels])
    if (located := locate_channels(channels)) is None:
        return "The positions of these channels are not known, so there is no map."
    known_channels, info = located
    figure, axes = make_axes(5, 4.2)
    percent = bad_share[known_channels] * 100
    limits = (0, max(1.0, percent.max()))
    # Without sensors MNE leaves the names out.
    image = draw_scalp_map(axes, percent, info, cmap="Reds", vlim=limits, names=info.ch_names, sensors=True)
    figure.colorbar(image, ax=axes, label="bad in % of recordings", shrink=0.7)
    worst = sorted(zip(-percent, info.ch_names, strict=True))[:MAX_NAMED_CHANNELS]
    named = ", ".join(f"{name} {-share:.1f} %" for share, name in worst if share < 0)
    caption = "The head from above, with the share of recordings in which each channel was bad"
    return Picture(figure, f"{caption}: {named} the most." if named else f"{caption}: none was.")


def _build_bad_channel_table(bad_channels: list[dict[str, str]]) -> Part:
    counts = Counter((name, reason) for b in bad_channels for name, reason in b.items())
    rows = [[name, reason, str(n), f"{n / len(bad_channels):.1%}"] for (name, reason), n in counts.most_common(15)]
    return Table(["channel", "reason", "recordings", "share"], rows) if rows else "None."


def _build_spectrum_picture(spectrum: EEGSpectrum) -> Picture:
    levels = [
        float(np.median(power, axis=0)[np.abs(hz - CAPTION_HZ).argmin()])
        for hz, power in ((spectrum.hz_before, spectrum.before), (spectrum.hz_after, spectrum.after))
    ]
    caption = (
        f"Power of the EEG by frequency, median over {format_count(len(spectrum.before), 'recording')} with the span "
        f"of the middle 80 %: at {CAPTION_HZ:g} Hz {levels[0]:.1f} dB as recorded and {levels[1]:.1f} dB as stored."
    )
    return Picture(_plot_spectrum(spectrum), caption)


def _build_level_picture(levels: Sequence[float]) -> Picture:
    caption = (
        f"Counts of {format_count(len(levels), 'recording')} by the level of their sound: median "
        f"{np.median(levels):.1f} dB of full scale, from {min(levels):.1f} to {max(levels):.1f}."
    )
    return Picture(_plot_levels(levels), caption)


def _plot_spectrum(spectrum: EEGSpectrum) -> Figure:
    figure, axes = make_axes(7, 3.5)
    sides = {"before": (spectrum.hz_before, spectrum.before), "after": (spectrum.hz_after, spectrum.after)}
    for name, (hz, power) in sides.items():
        axes.plot(hz, np.median(power, axis=0), label=f"{name}, median of {format_count(len(power), 'recording')}")
        axes.fill_between(hz, np.percentile(power, 10, axis=0), np.percentile(power, 90, axis=0), alpha=0.2)
    axes.set(xlabel="Hz", ylabel="dB (µV²/Hz)", xlim=(0, min(100, spectrum.hz_before[-1])))
    limits = np.concatenate(
        [np.median(spectrum.before, axis=0), np.median(spectrum.after, axis=0)[spectrum.hz_after < 45]]
    )
    axes.set_ylim(float(limits.min()) - 10, float(limits.max()) + 5)
    axes.legend()
    return figure


def _plot_levels(levels: Sequence[float]) -> Figure:
    figure, axes = make_axes(7, 2.5)
    axes.hist(levels, bins=40)
    axes.set(xlabel="RMS level, dB of full scale", ylabel="recordings")
    return figure


def _plot_frames(frames: dict[str, np.ndarray]) -> Figure:
    figure, panels = make_panels(list(frames), 6, (1.6, 1.8))
    for axes, frame in zip(panels, frames.values(), strict=True):
        axes.axis("off")
        axes.imshow(frame)
        axes.title.set_fontsize(8)
    return figure


def _build_problem_section(problems: tuple[Problem, ...]) -> Section:
    if not problems:
        return Section("Set aside", ["Nothing."])
    rows = [[p.subject, p.recording, p.file, p.reason] for p in problems]
    return Section(f"Set aside: {len(rows)}", [Table(["subject", "recording", "file", "why"], rows, left=True)])
