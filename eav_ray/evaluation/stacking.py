"""Fuse by stacking: a logistic regression on what the modalities say of people that they were not trained on.

It is fitted on predictions that each fold's own training people have by models that never saw them: its validation
side, or its inner folds. The test predictions of the other folds of a protocol look like such rows, and are not: across
people their encoders were trained on the very people whom this fold tests, with their labels, so that how their outputs
go with the labels is no longer independent of the test. Where a fold has no rows of its own there is no stacking.
"""

import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from eav_ray.training.metrics import LOGIT_PREFIX, STACKING, select_logits

INVERSE_PENALTY = 1.0  # `C` of scikit-learn, its default: it is chosen nowhere, so nothing is chosen on any row
MIN_LOG_PROBABILITY = float(np.log(np.finfo(float).tiny))  # of a class that no row to fit on has


def add_stacking(
    windows: pd.DataFrame, fitting_rows: pd.DataFrame | None, modalities: list[str], n_classes: int
) -> pd.DataFrame | None:
    """Add the logits of `stacking` to predictions: log probabilities, one row a window.

    Args:
        windows: Predictions of the test rows, with a column `fold`; their labels are not looked at.
        fitting_rows: Of each fold's validation rows, or inner folds, by models that never saw them, with a column
            `fold`; None where there are none.
    Returns:
        None where there are fewer than two modalities, or a fold has no rows to fit on, or rows of one class only.
    """
    if fitting_rows is None or len(modalities) < 2:
        return None
    log_p_VK = np.full((len(windows), n_classes), MIN_LOG_PROBABILITY)
    for fold in windows["fold"].unique():
        fitted_on = fitting_rows[fitting_rows["fold"] == fold]
        if fitted_on["label"].nunique() < 2:
            return None
        model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000)
        model.fit(build_stacking_features(fitted_on, modalities), fitted_on["label"].to_numpy(int))
        rows = np.flatnonzero(windows["fold"] == fold)
        features = build_stacking_features(windows.iloc[rows], modalities)
        log_p_VK[np.ix_(rows, model.classes_)] = np.maximum(model.predict_log_proba(features), MIN_LOG_PROBABILITY)
    return windows.assign(**{f"{STACKING}.{LOGIT_PREFIX}{k}": log_p_VK[:, k] for k in range(n_classes)})


def build_stacking_features(windows: pd.DataFrame, modalities: list[str]) -> np.ndarray:
    """(windows, modalities x classes): log probabilities, less their mean over the classes.

    So a modality that a window lacks, which is 0 throughout, says the same as one that finds all classes equally
    likely.
    """
    features = []
    for m in modalities:
        logits_VK = select_logits(windows, m).astype(float)
        known = np.isfinite(logits_VK).all(axis=1, keepdims=True)
        log_p_VK = log_softmax(np.where(known, logits_VK, 0), axis=1)
        features.append(log_p_VK - log_p_VK.mean(1, keepdims=True))
    return np.concatenate(features, 1)


def describe_stacking(fitting_rows: pd.DataFrame | None, *, added: bool, out_of_fold: bool) -> str:
    """Say in a line what stacking was fitted on, or why there is none."""
    if fitting_rows is None:
        return (
            "No stacking: this split has no validation rows. --temperature trains the inner folds of the training "
            "people, whose predictions it can be fitted on."
        )
    if not added:
        return "No stacking: a fold has no validation rows, or rows of one class only."
    source = "inner folds" if out_of_fold else "validation side"
    return (
        f"{STACKING} is a logistic regression on the modalities' log probabilities, fitted for each fold on the "
        f"windows of its {source}, {len(fitting_rows)} in all: never on recordings that it is tested on."
    )
