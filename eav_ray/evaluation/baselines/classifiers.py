"""The classifiers of baselines, and the choice of their parameters on inner folds. Runs without torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from eav_ray.config.extras import require_extra
from eav_ray.evaluation.probability_calibration import fit_temperature
from eav_ray.evaluation.stacking import MIN_LOG_PROBABILITY
from eav_ray.training.metrics import compute_scores_from_logits

Parameters = Mapping[str, float]
REGRESSION_GRID = tuple({"C": c} for c in (0.001, 0.01, 0.1, 1.0))
SVM_GRID = tuple({"C": c, "gamma_scale": g} for c in (1.0, 10.0, 100.0) for g in (0.25, 1.0))
MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class BaselineKind:
    """A classifier of windows.

    Attributes:
        title: Before the name of what it reads.
        grid: The parameters that inner folds choose from: of equal ones the first, which is the most regular.
        default: Where a protocol has no rows to choose on.
        reads_covariances: It reads covariance matrices of channels, (windows, channels, channels), and not features.
    """

    name: str
    title: str
    grid: tuple[Parameters, ...]
    default: Parameters
    build_classifier: Callable[[Parameters, np.ndarray], Any]
    reads_covariances: bool = False

    def build_preparation(self) -> Pipeline:
        """Build what brings inputs to the classifier: fitted on training rows alone, as the classifier is."""
        if not self.reads_covariances:
            return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
        from pyriemann.tangentspace import TangentSpace

        return make_pipeline(TangentSpace(metric="riemann"), StandardScaler())


def _build_regression(parameters: Parameters, x_VF: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=parameters["C"], class_weight="balanced", max_iter=MAX_ITERATIONS)


def compute_gamma(parameters: Parameters, x_VF: np.ndarray) -> Any:  # for scikit-learn's types it is text
    """Compute the width of a Gaussian kernel; `gamma_scale` of 1 is gamma="scale" of scikit-learn."""
    return parameters["gamma_scale"] / max(x_VF.shape[1] * x_VF.var(), 1e-12)


def _build_svm(parameters: Parameters, x_VF: np.ndarray) -> SVC:
    return SVC(C=parameters["C"], gamma=compute_gamma(parameters, x_VF), class_weight="balanced")


KINDS = {
    kind.name: kind
    for kind in (
        BaselineKind("svm", "SVM", SVM_GRID, {"C": 10.0, "gamma_scale": 1.0}, _build_svm),
        BaselineKind("logistic", "logistic regression", REGRESSION_GRID, {"C": 0.1}, _build_regression),
        BaselineKind(
            "riemann",
            "Riemannian tangent space",
            REGRESSION_GRID,
            {"C": 0.1},
            _build_regression,
            reads_covariances=True,
        ),
    )
}


def require_kinds(names: Sequence[str], kinds: Mapping[str, BaselineKind] = KINDS) -> None:
    """Check that the packages of some kinds are installed.

    Args:
        kinds: All that there are.
    Raises:
        ConfigError: Some are missing.
    """
    if any(kinds[name].reads_covariances for name in names):
        others = ",".join(name for name, kind in kinds.items() if not kind.reads_covariances)
        require_extra("baselines", "`eav baseline`", {"pyriemann": "pyriemann"}, f"give --kinds {others}")


@dataclass(frozen=True)
class Rows:
    """Windows to learn from or to score.

    Attributes:
        x: Features, (windows, features), or covariances.
        label: (windows,) class numbers, or the true numbers of one target.
        recording: (windows,) a name of the recording of each.
    """

    x: np.ndarray
    label: np.ndarray
    recording: np.ndarray

    def select(self, chosen: np.ndarray) -> "Rows":
        """Select windows by a mask or by number."""
        return Rows(self.x[chosen], self.label[chosen], self.recording[chosen])

    @property
    def n_classes(self) -> int:
        return len(np.unique(self.label))


@dataclass(frozen=True)
class FoldRows:
    """What a baseline reads of one fold, of windows that have its modality.

    Attributes:
        train: Windows to fit on.
        inner: Windows to fit on and to score of each inner fold.
        test_x: Inputs of the test windows.
        has: (test windows,) which of them these are.
    """

    train: Rows
    inner: Sequence[tuple[Rows, Rows]]
    test_x: np.ndarray
    has: np.ndarray


@dataclass(frozen=True)
class Choice:
    """What inner folds chose.

    Attributes:
        score: Mean over inner folds of the balanced accuracy of recordings, and of windows; None without inner folds.
        temperature: Scores are divided by it, so that the labels of validation rows are most likely.
    """

    parameters: Parameters
    score: tuple[float, float] | None
    temperature: float


def choose_parameters(kind: BaselineKind, inner: Sequence[tuple[Rows, Rows]], n_classes: int) -> Choice:
    """Choose parameters by the balanced accuracy of recordings on inner folds; among equal ones by that of windows.

    Args:
        inner: Rows to fit on and to score of each inner fold, all of them of training people. Folds with fewer than two
            classes to learn do not count.
    """
    usable = [(fitted, scored) for fitted, scored in inner if fitted.n_classes > 1 and len(scored.label)]
    if not usable:
        return Choice(kind.default, None, temperature=1.0)
    scores = np.zeros((len(kind.grid), len(usable), 2))
    log_p: list[list[np.ndarray]] = [[] for _ in kind.grid]
    for fold, (fitted, scored) in enumerate(usable):
        preparation = kind.build_preparation().fit(fitted.x)
        x_fit, x_score = preparation.transform(fitted.x), preparation.transform(scored.x)
        recording = np.unique(scored.recording, return_inverse=True)[1]
        for candidate, parameters in enumerate(kind.grid):
            classifier = kind.build_classifier(parameters, x_fit).fit(x_fit, fitted.label)
            log_p_VK = compute_log_probabilities(classifier, x_score, n_classes)
            found = compute_scores_from_logits(log_p_VK, scored.label, recording, always_present=True)
            scores[candidate, fold] = found["recording_balanced_accuracy"], found["window_balanced_accuracy"]
            log_p[candidate].append(log_p_VK)
    means = [(float(recordings), float(windows)) for recordings, windows in scores.mean(1).round(9)]
    best = max(range(len(means)), key=lambda candidate: (means[candidate], -candidate))
    labels = np.concatenate([scored.label for _, scored in usable])
    return Choice(kind.grid[best], means[best], fit_temperature(np.concatenate(log_p[best]), labels))


def compute_log_probabilities(
    classifier: Any, x_VF: np.ndarray, n_classes: int, temperature: float = 1.0
) -> np.ndarray:
    """Compute (windows, classes) log probabilities: the softmax of what a fitted classifier decides by.

    Of a logistic regression these are its own. Of a support vector machine they name the classes that it names, and
    are as sure as the temperature makes them. A class that it has not seen gets the least.
    """
    decision = classifier.decision_function(x_VF)
    if decision.ndim == 1:  # of two classes: in favour of the second
        decision = np.stack([np.zeros_like(decision), decision], 1)
    log_p_VK = np.full((len(x_VF), n_classes), MIN_LOG_PROBABILITY)
    log_p_VK[:, classifier.classes_] = np.maximum(log_softmax(decision / temperature, axis=1), MIN_LOG_PROBABILITY)
    return log_p_VK


def fit_and_predict(
    kind: BaselineKind, train: Rows, inner: Sequence[tuple[Rows, Rows]], test_x: np.ndarray, n_classes: int
) -> tuple[np.ndarray, Choice] | None:
    """Choose on inner folds, fit on all training rows, predict the test rows.

    Returns:
        (windows, classes) log probabilities, and what was chosen; None where the training rows have fewer than two
        classes, so that there is nothing to learn.
    """
    if train.n_classes < 2:
        return None
    choice = choose_parameters(kind, inner, n_classes)
    preparation = kind.build_preparation().fit(train.x)
    x_fit = preparation.transform(train.x)
    classifier = kind.build_classifier(choice.parameters, x_fit).fit(x_fit, train.label)
    if not len(test_x):
        return np.empty((0, n_classes)), choice
    return compute_log_probabilities(classifier, preparation.transform(test_x), n_classes, choice.temperature), choice
