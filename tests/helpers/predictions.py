"""Predictions that know the class, each source as well as its strength."""

import numpy as np
import pandas as pd

CLASSES = ("calm", "glad", "sad")
MODALITIES = ["audio", "eeg", "video"]
STRENGTH = {"audio": 1.0, "eeg": 0.5, "video": 1.2, "mean_probability": 1.5, "product": 1.6, "fusion": 2.0}


def draw_predictions(
    subjects: int = 8, recordings: int = 12, *, seed: int = 0, gain: float = 0.0, unequal: bool = False
) -> pd.DataFrame:
    """Logits that know the class, each source as well as its strength; two windows a recording."""
    rng, rows = np.random.default_rng(seed), []
    for subject in range(subjects):
        for n in range(recordings):
            label = 0 if unequal and n % 4 else n % 3
            for window in range(2):
                row = {
                    "subject": f"p{subject}",
                    "recording": f"r{n}",
                    "window": window,
                    "label": label,
                    "fold": subject,
                }
                for s, strength in STRENGTH.items():
                    logits = rng.normal(0, 1, 3) + (strength + gain) * (np.arange(3) == label)
                    row |= {f"{s}.logit_{k}": float(v) for k, v in enumerate(logits)}
                share = rng.dirichlet([4, 2 + 3 * (label == 1), 4])
                for kind in ("weight", "corrected"):
                    row |= {f"{kind}.{m}": float(w) for m, w in zip(MODALITIES, share, strict=True)}
                seeing = ("video", "mean_probability", "product", "fusion")
                row |= {f"{s}.frames_correct": float(rng.integers(0, 6)) / 5 for s in seeing}
                rows.append(row)
    return pd.DataFrame(rows)
