"""A fusion helps where it beats the best single modality and the better rule, over people, and nowhere else."""

import numpy as np
import pandas as pd
import pytest

from eav_ray.evaluation.fusion_claim import judge_fusion

MODALITIES = ["audio", "eeg"]


def draw_correct(n_subjects: int = 12, **rates: float) -> pd.DataFrame:
    """Sources that are right with a rate of their own, in 60 recordings of each person."""
    rng = np.random.default_rng(0)
    ids = {"subject": np.repeat([f"p{n}" for n in range(n_subjects)], 60)}
    return pd.DataFrame(ids | {s: rng.random(60 * n_subjects) < rate for s, rate in rates.items()})


def test_a_fusion_that_beats_both_bars_helps() -> None:
    claim = judge_fusion(draw_correct(audio=0.5, eeg=0.4, mean_probability=0.55, product=0.6, fusion=0.9), MODALITIES)
    assert (claim.best_single, claim.better_rule) == ("audio", "product")
    assert claim.helps and str(claim).startswith("the fusion helps: +")
    assert "against audio" in str(claim) and "against product" in str(claim)


@pytest.mark.parametrize(
    "rates",
    [
        {"mean_probability": 0.9, "product": 0.6},
        {"mean_probability": 0.6, "product": 0.9},
        {"mean_probability": 0.6, "product": 0.97},
        {"mean_probability": 0.6, "product": 0.6, "audio": 0.9},
    ],
    ids=["as the mean", "as the product", "below the product", "as a modality"],
)
def test_a_fusion_that_beats_one_bar_alone_is_not_said_to_help(rates: dict[str, float]) -> None:
    claim = judge_fusion(draw_correct(**{"audio": 0.5, "eeg": 0.4, "fusion": 0.9} | rates), MODALITIES)
    assert not claim.helps and "not shown to help" in str(claim)


def test_of_few_people_nothing_is_said() -> None:
    correct = draw_correct(3, audio=0.5, eeg=0.4, mean_probability=0.5, product=0.6, fusion=1.0)
    claim = judge_fusion(correct, MODALITIES)
    assert not claim.helps and "cannot be said of 3 people" in str(claim)
