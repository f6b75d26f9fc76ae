"""Stacking is scikit-learn's logistic regression on rows of each fold's own, and never looks at a tested label."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from eav_ray.evaluation import summary
from eav_ray.evaluation.probability_calibration import summarize_calibration
from eav_ray.evaluation.stacking import add_stacking, build_stacking_features, describe_stacking
from eav_ray.training.metrics import STACKING, compute_scores, select_logits
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions

N_CLASSES = len(CLASSES)


def stack(tested: pd.DataFrame, fitted_on: pd.DataFrame | None) -> pd.DataFrame:
    stacked = add_stacking(tested, fitted_on, MODALITIES, N_CLASSES)
    assert stacked is not None
    return stacked


def test_each_fold_has_a_regression_of_its_own() -> None:
    tested, fitted_on = draw_predictions(3), draw_predictions(3, seed=1)
    found = stack(tested, fitted_on)
    for fold in range(3):
        features, labels = [], []
        for table in (fitted_on, tested):
            mine = table[table["fold"] == fold]
            features.append(np.hstack([log_softmax(select_logits(mine, m), axis=1) for m in MODALITIES]))
            labels.append(mine["label"])
        # Of each modality less its mean: the same probabilities but for the penalty, which sees no constant.
        centred = [
            np.hstack([x[:, n : n + 3] - x[:, n : n + 3].mean(1, keepdims=True) for n in (0, 3, 6)]) for x in features
        ]
        expected = LogisticRegression(max_iter=1000).fit(centred[0], labels[0]).predict_proba(centred[1])
        ours = np.exp(select_logits(found[found["fold"] == fold], STACKING))
        assert ours == pytest.approx(expected, abs=1e-6)


def test_the_labels_that_are_tested_change_nothing() -> None:
    tested, fitted_on = draw_predictions(2), draw_predictions(2, seed=1)
    other = tested.assign(label=(tested["label"] + 1) % N_CLASSES)
    first, second = (select_logits(stack(table, fitted_on), STACKING) for table in (tested, other))
    assert np.array_equal(first, second)


def test_it_learns_which_modality_to_trust() -> None:
    """One is sure and knows nothing: the product heeds it, a regression on other people does not."""
    tables = [draw_predictions(1, 90, seed=n) for n in range(2)]
    for n, table in enumerate(tables):
        noise = np.random.default_rng(n + 5).normal(0, 30, (len(table), N_CLASSES))
        table[[f"eeg.logit_{k}" for k in range(N_CLASSES)]] = noise
        logits = [log_softmax(select_logits(table, m), axis=1) for m in MODALITIES]
        table[[f"product.logit_{k}" for k in range(N_CLASSES)]] = np.mean(logits, 0)
    found = stack(*tables)
    by_stacking, by_product = (compute_scores(found, s)["window_accuracy"] for s in (STACKING, "product"))
    assert by_stacking > by_product + 0.2


def test_a_missing_modality_says_as_much_as_a_uniform_one() -> None:
    table = draw_predictions(1)
    columns = [f"eeg.logit_{k}" for k in range(N_CLASSES)]
    missing, uniform = table.copy(), table.copy()
    missing[columns], uniform[columns] = np.nan, 3.0
    assert np.allclose(build_stacking_features(missing, MODALITIES), build_stacking_features(uniform, MODALITIES))


def test_a_class_that_no_row_has_is_never_named_and_has_a_number() -> None:
    fitted_on = draw_predictions(1, 30, seed=1)
    found = select_logits(stack(draw_predictions(1), fitted_on[fitted_on["label"] != 2]), STACKING)
    assert np.isfinite(found).all() and not (found.argmax(1) == 2).any()


def test_without_rows_of_its_own_there_is_none_and_the_page_says_so() -> None:
    tested, fitted_on = draw_predictions(3), draw_predictions(2, seed=1)  # the third fold has no rows
    assert add_stacking(tested, None, MODALITIES, N_CLASSES) is None
    assert add_stacking(tested, fitted_on, MODALITIES, N_CLASSES) is None
    assert add_stacking(tested, draw_predictions(3), ["eeg"], N_CLASSES) is None
    for rows in (None, fitted_on):
        assert describe_stacking(rows, added=False, out_of_fold=False).startswith("No stacking: ")
    assert "inner folds, 72 in all" in describe_stacking(draw_predictions(3), added=True, out_of_fold=True)


def test_it_stands_in_the_tables_where_it_is() -> None:
    tested, fitted_on = draw_predictions(), draw_predictions(seed=1)
    found = stack(tested, fitted_on)
    sources = ["mean_probability", "product", STACKING, "fusion"]
    accuracy = summary.summarize_accuracy(found, MODALITIES, N_CLASSES)["sources"]
    assert list(accuracy)[3:] == sources and list(summary.count_confusions(found, MODALITIES, 3))[3:] == sources
    compared = summary.compare_sources(found, MODALITIES)
    assert list(compared["rescue"]["sources"]) == sources
    assert STACKING in {one["other"] for one in compared["fusion"]}
    assert STACKING not in summary.summarize_accuracy(tested, MODALITIES, N_CLASSES)["sources"]
    calibration = summarize_calibration(found, [STACKING, "fusion"], fitted_on)
    assert "scaled" not in calibration[STACKING] and "scaled" in calibration["fusion"]
