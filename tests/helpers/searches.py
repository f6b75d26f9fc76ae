"""Candidates of a search that nobody ran."""

import json

import numpy as np
import pandas as pd

from eav_ray.config import SearchDimension
from eav_ray.training.run_spec import SELECTION_METRIC

SPACE = {
    "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
    "fusion.kind": SearchDimension(choice=("gated", "shared_attention")),
    "optim.lr": SearchDimension(low=1e-4, high=1e-2, log=True),
}
SHARES = {"fusion.heads": 0.7, "optim.lr": 0.25, "fusion.kind": 0.05}


def draw_candidates(count: int, *, priced: bool = False) -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        state = "PRUNED" if number % 7 == 6 else "FAIL" if number == 3 else "COMPLETE"
        changes = {"fusion.heads": int(rng.choice([1, 2, 4, 8])), "optim.lr": float(10 ** rng.uniform(-4, -2))}
        changes |= {"fusion.kind": str(rng.choice(["gated", "shared_attention"]))}
        for fold in range(1 if state == "PRUNED" else 3):
            score = np.nan if state == "FAIL" else rng.uniform(0.3, 0.8)
            row = {
                "candidate": number,
                "state": state,
                "changes": json.dumps(changes),
                "fold": fold,
                SELECTION_METRIC: score,
            }
            rows.append(row | ({"cost": 1000.0 * changes["fusion.heads"] + number} if priced else {}))
    return pd.DataFrame(rows)
