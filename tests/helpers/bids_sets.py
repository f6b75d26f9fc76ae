"""Data sets in BIDS, written by mne-bids, whose signals say where they belong."""

from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import soundfile
from mne_bids import BIDSPath, write_raw_bids

HZ, NAMES, DURATION_S = 250, ("Fp1", "Cz", "O1"), 40
EVENTS = ((2.0, 10.0, "happy"), (14.0, 8.0, "sad"), (24.0, 10.0, "happy"))  # onset, duration, type


def make_signal(seed: int = 0) -> np.ndarray:
    """(channels, samples) in volts, no two values alike."""
    return np.random.default_rng(seed).normal(0, 2e-5, (len(NAMES), HZ * DURATION_S))


def write_run(
    root: Path,
    subject: str = "01",
    *,
    session: str | None = None,
    task: str = "film",
    run: str | None = None,
    kind: str = "BrainVision",
    events: Sequence[tuple[float, float, str]] = EVENTS,
    bads: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write one run with an eye channel beside the EEG; returns the file of its EEG."""
    values = np.concatenate([make_signal(seed), np.full((1, HZ * DURATION_S), 1e-4)])
    info = mne.create_info([*NAMES, "HEOG"], HZ, ["eeg"] * len(NAMES) + ["eog"], verbose="ERROR")
    raw = mne.io.RawArray(values, info, verbose="ERROR")
    raw.info["line_freq"], raw.info["bads"] = 50, list(bads)
    raw.set_annotations(mne.Annotations(*zip(*events, strict=True)) if events else None)
    path = BIDSPath(root=root, subject=subject, session=session, task=task, run=run, datatype="eeg")
    written = write_raw_bids(raw, path, format=kind, allow_preload=True, overwrite=True, verbose="ERROR")
    return Path(written.fpath)


def add_column(path: Path, name: str, cells: Sequence[str]) -> None:
    """Add a column to a table, or replace it."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    if name in lines[0]:
        at = lines[0].index(name)
        lines = [line[:at] + line[at + 1 :] for line in lines]
    rows = zip(lines, (name, *cells), strict=True)
    path.write_text("".join("\t".join((*line, cell)) + "\n" for line, cell in rows), encoding="utf-8")


def write_sound(eeg: Path, hz: int = 16000, suffix: str = "audio") -> Path:
    """Write the sound of a run beside its EEG: a ramp, so that every sample says when it is."""
    folder = eeg.parent.parent / "beh"
    folder.mkdir(exist_ok=True)
    path = folder / eeg.name.replace(f"_eeg{eeg.suffix}", f"_{suffix}.wav")
    soundfile.write(path, np.linspace(-0.5, 0.5, hz * DURATION_S), hz, subtype="FLOAT")
    return path
