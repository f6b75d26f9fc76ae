"""A table of features of people who differ more from each other than their classes do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

N_SUBJECTS, N_RECORDINGS, CLASSES = 6, 12, ("calm", "glad")
COLUMNS = ("AU01", "AU12", "AU45")
BETWEEN, WITHIN = 20.0, 1.0  # SD of what is a person's own, and of noise; the classes differ by 4


def write_tables(folder: Path, *, missing: int = 0) -> dict[str, Any]:
    """Write a table of recordings and one of their features; returns the changes of an experiment on them.

    Args:
        missing: How many recordings of each subject have no row of features.
    """
    rng = np.random.default_rng(0)
    recordings, features = [], []
    for s in range(N_SUBJECTS):
        own = BETWEEN * rng.standard_normal(len(COLUMNS))
        for r in range(N_RECORDINGS):
            label = r % len(CLASSES)
            recordings.append({"subject": f"p{s}", "recording": f"r{r:02d}", "label": CLASSES[label]})
            values = own + WITHIN * rng.standard_normal(len(COLUMNS)) + np.array([4.0 * label, 0, 0])
            if r >= missing:
                row = {"clip": f"p{s}/r{r:02d}", "note": "not a feature"}
                features.append(row | dict(zip(COLUMNS, values, strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(recordings).to_csv(folder / "recordings.csv", index=False)
    pd.DataFrame(features).to_csv(folder / "faces.csv", index=False)
    return {
        "data.dataset": "recordings_table",
        "data.root": str(folder / "recordings.csv"),
        "data.modalities": ["face"],
        "data.features": {"face": {"path": str(folder / "faces.csv"), "key": "clip"}},
        "preprocessing.features": {"face": {"columns": list(COLUMNS)}},
        "split.n_folds": 3,
        "train.encoders.face.lr": 1e-2,
        "train.encoders.face.epochs": 20,
        "runtime.engine": "torch",
        "runtime.workers": 1,
        **{f"store.{name}": str(folder / name) for name in ("shards", "results", "cache")},
    }
