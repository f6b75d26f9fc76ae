"""Predictions of numbers that know the truth, each source as well as its strength."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

TARGETS = ("valence", "arousal")
MODALITIES = ["audio", "eeg", "video"]
NOISE = {"audio": 1.2, "eeg": 2.0, "video": 0.8, "mean": 0.8, "fusion": 0.5}  # SD, beside a target's of 1


def draw_number_predictions(
    subjects: int = 8,
    recordings: int = 12,
    *,
    seed: int = 0,
    noise: Mapping[str, float] = NOISE,
    sources: Sequence[str] = tuple(NOISE),
    within: bool = True,
) -> pd.DataFrame:
    """Two targets, two windows a recording, whose mean is the recording's; a fold a subject.

    Args:
        within: Whether the targets of a subject's recordings differ.
    """
    rng, rows = np.random.default_rng(seed), []
    for subject in range(subjects):
        of_subject = rng.normal(0, 1, 2)
        for n in range(recordings):
            true = rng.normal(0, 1, 2) if within else of_subject
            values = {s: true + rng.normal(0, noise[s], 2) for s in sources}
            for window in range(2):
                row = {"subject": f"p{subject}", "recording": f"r{n}", "window": window, "fold": subject}
                row |= {f"target_{k}": float(true[k]) for k in range(2)}
                shift = 0.1 * (-1) ** window
                row |= {f"{s}.value_{k}": float(x[k] + shift) for s, x in values.items() for k in range(2)}
                share = rng.dirichlet([4, 2, 4])
                for kind in ("weight", "corrected"):
                    row |= {f"{kind}.{m}": float(w) for m, w in zip(MODALITIES, share, strict=True)}
                rows.append(row)
    return pd.DataFrame(rows)


def list_target_ids(windows: pd.DataFrame) -> pd.DataFrame:
    """One row a window as `WindowCache.ids` has it: `id` and the targets."""
    ids = windows["subject"] + "/" + windows["recording"]
    return windows[["subject", "target_0", "target_1"]].assign(id=ids)


def list_training_sides(windows: pd.DataFrame) -> dict[int, tuple[str, ...]]:
    """The recordings of all other subjects, by the fold that tests one."""
    ids = list_target_ids(windows).assign(fold=windows["fold"]).drop_duplicates("id")
    return {int(fold): tuple(ids["id"][ids["fold"] != fold]) for fold in ids["fold"].unique()}
