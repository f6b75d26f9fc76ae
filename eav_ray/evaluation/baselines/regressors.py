"""The regressions of baselines, where numbers are predicted, and the choice of their parameters on inner folds.

Runs without torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from eav_ray.evaluation.baselines.classifiers import BaselineKind, Parameters, Rows, compute_gamma
from eav_ray.training.metrics import compute_scores_from_values

RIDGE_GRID = tuple({"alpha": a} for a in (10_000.0, 1_000.0, 100.0, 10.0, 1.0))
SVR_GRID = tuple({"C": c, "gamma_scale": g} for c in (0.1, 1.0, 10.0) for g in (0.25, 1.0))
Score = tuple[float, float]  # more is better


def _build_ridge(parameters: Parameters, x_VF: np.ndarray) -> Ridge:
    return Ridge(alpha=parameters["alpha"])


def _build_svr(parameters: Parameters, x_VF: np.ndarray) -> SVR:
    return SVR(C=parameters["C"], gamma=compute_gamma(parameters, x_VF))


NUMBER_KINDS = {
    kind.name: kind
    for kind in (
        BaselineKind("svr", "SVR", SVR_GRID, {"C": 1.0, "gamma_scale": 1.0}, _build_svr),
        BaselineKind("ridge", "ridge regression", RIDGE_GRID, {"alpha": 100.0}, _build_ridge),
        BaselineKind(
            "riemann_ridge",
            "Riemannian tangent space and ridge regression",
            RIDGE_GRID,
            {"alpha": 100.0},
            _build_ridge,
            reads_covariances=True,
        ),
    )
}
# Of a classifier that a modality names: what stands in its place where numbers are predicted.
REGRESSORS = {"svm": "svr", "logistic": "ridge", "riemann": "riemann_ridge"}


@dataclass(frozen=True)
class NumberChoice:
    """What inner folds chose for one target.

    Attributes:
        score: Means over inner folds of the CCC of recordings and of the negative RMSE; None without inner folds. A
            CCC that is not defined in any fold is minus infinity.
    """

    parameters: Parameters
    score: Score | None


def fit_and_predict_number(
    kind: BaselineKind, train: Rows, inner: Sequence[tuple[Rows, Rows]], test_x: np.ndarray
) -> tuple[np.ndarray, NumberChoice] | None:
    """Choose on inner folds, fit on all training rows, predict the test rows.

    Args:
        train, inner: Their labels are the true numbers; rows whose number is not known (NaN) are not used.
    Returns:
        (windows,) numbers, and what was chosen; None where training rows have fewer than two numbers.
    """
    train, inner = _drop_unknown(train), [(_drop_unknown(fitted), _drop_unknown(scored)) for fitted, scored in inner]
    if train.n_classes < 2:
        return None
    choice = choose_number_parameters(kind, inner)
    preparation = kind.build_preparation().fit(train.x)
    if not len(test_x):
        return np.empty(0), choice
    x_fit, x_test = preparation.transform(train.x), preparation.transform(test_x)
    return _predict(kind, choice.parameters, x_fit, train.label, x_test), choice


def choose_number_parameters(kind: BaselineKind, inner: Sequence[tuple[Rows, Rows]]) -> NumberChoice:
    """Choose parameters by the CCC of recordings on inner folds; among equal ones by RMSE, then the most regular.

    Args:
        inner: Rows to fit on and to score of each inner fold, all of them of training people. Folds with fewer than two
            numbers to learn do not count.
    """
    usable = [(fitted, scored) for fitted, scored in inner if fitted.n_classes > 1 and len(scored.label)]
    if not usable:
        return NumberChoice(kind.default, None)
    found = np.full((len(kind.grid), len(usable), 2), np.nan)
    for fold, (fitted, scored) in enumerate(usable):
        preparation = kind.build_preparation().fit(fitted.x)
        x_fit, x_score = preparation.transform(fitted.x), preparation.transform(scored.x)
        for candidate, parameters in enumerate(kind.grid):
            predicted = _predict(kind, parameters, x_fit, fitted.label, x_score)
            found[candidate, fold] = _score_recordings(predicted, scored)
    scores = [_average_folds(of_candidate) for of_candidate in found]
    best = max(range(len(scores)), key=lambda candidate: (scores[candidate], -candidate))
    return NumberChoice(kind.grid[best], scores[best])


def _drop_unknown(rows: Rows) -> Rows:
    return rows.select(np.isfinite(rows.label))


def _predict(
    kind: BaselineKind, parameters: Parameters, x_fit: np.ndarray, y_fit: np.ndarray, x: np.ndarray
) -> np.ndarray:
    model = TransformedTargetRegressor(kind.build_classifier(parameters, x_fit), transformer=StandardScaler())
    return model.fit(x_fit, y_fit).predict(x)


def _score_recordings(predicted_V: np.ndarray, rows: Rows) -> tuple[float, float]:
    """Score the means of recordings: CCC, and the negative RMSE, as numbers of which more is better."""
    recording_V = np.unique(rows.recording, return_inverse=True)[1]
    subject_V = np.array([name.split("/")[0] for name in rows.recording])
    scores = compute_scores_from_values(predicted_V[:, None], rows.label[:, None], recording_V, subject_V)
    return scores["recording_ccc"], -scores["recording_rmse"]


def _average_folds(scores_F2: np.ndarray) -> Score:
    ccc = scores_F2[:, 0][np.isfinite(scores_F2[:, 0])]
    return (round(float(ccc.mean()), 9) if len(ccc) else -math.inf, float(scores_F2[:, 1].mean()))
