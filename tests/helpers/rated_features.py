"""Features of a face and a voice, each of which goes with one of two ratings."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

N_SUBJECTS, N_RECORDINGS = 6, 12
TARGETS = ("valence", "arousal")
COLUMNS = {"face": ("AU06", "AU12", "AU45"), "voice": ("pitch", "loudness")}


def write_rated_tables(folder: Path) -> dict[str, Any]:
    """Write a table of recordings with ratings and one of the features of each modality.

    Returns:
        The changes of an experiment on them.
    """
    rng = np.random.default_rng(0)
    recordings: list[dict[str, Any]] = []
    features: dict[str, list[dict[str, Any]]] = {m: [] for m in COLUMNS}
    for s in range(N_SUBJECTS):
        for r in range(N_RECORDINGS):
            valence, arousal = rng.normal(5, 2), rng.normal(50, 20)
            name = {"subject": f"p{s}", "recording": f"r{r:02d}"}
            recordings.append(name | {"valence": valence, "arousal": arousal})
            signals = {"face": np.array([valence, -valence, 0]), "voice": np.array([arousal, arousal]) / 10}
            for m, values in signals.items():
                row = values + 0.5 * rng.standard_normal(len(values))
                features[m].append({"clip": f"p{s}/r{r:02d}"} | dict(zip(COLUMNS[m], row, strict=True)))
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(recordings).to_csv(folder / "recordings.csv", index=False)
    for m, rows in features.items():
        pd.DataFrame(rows).to_csv(folder / f"{m}.csv", index=False)
    encoders = {f"train.encoders.{m}.{key}": value for m in COLUMNS for key, value in (("lr", 1e-2), ("epochs", 40))}
    return encoders | {
        "data.dataset": "recordings_table",
        "data.root": str(folder / "recordings.csv"),
        "data.modalities": list(COLUMNS),
        "data.targets.columns": list(TARGETS),
        "data.features": {m: {"path": str(folder / f"{m}.csv"), "key": "clip"} for m in COLUMNS},
        "preprocessing.features": {m: {"columns": list(columns)} for m, columns in COLUMNS.items()},
        "split.n_folds": 2,
        "optim.epochs": 20,
        "optim.lr": 3e-3,
        "fusion.width": 16,
        "fusion.heads": 2,
        "runtime.engine": "torch",
        "runtime.workers": 1,
        **{f"store.{name}": str(folder / name) for name in ("shards", "results", "cache")},
    }
