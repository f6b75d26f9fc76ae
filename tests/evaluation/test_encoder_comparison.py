"""Encoders are compared person by person, after their seeds were averaged; never over folds, windows or recordings."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from eav_ray.evaluation.comparisons import holm, signed_rank
from eav_ray.evaluation.encoder_comparison import (
    BASELINE,
    ENCODER,
    SCORE_COLUMNS,
    ModelPredictions,
    compare_models,
    list_score_rows,
    measure_spreads,
    score_models,
)
from eav_ray.evaluation.number_comparisons import Rivals, compute_gains
from eav_ray.evaluation.number_scores import average_numbers
from eav_ray.evaluation.statistics import compute_share_interval
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections.encoders import build_encoder_sections, describe_comparison, format_encoders
from eav_ray.training.number_scores import compute_rmse

HARDWARE = {"device": "a machine", "threads": 1, "workers": 2, "gpus": 0, "cores": 2, "load": 0.5}
COST = {"parameters": 14444.0, "gmac": 1e-4, "seconds": 3.25, "latency_ms": 0.4, "p95_ms": 0.7, "repeats": 30}


def draw(rate: float, seed: int, *, subjects: int = 9, source: str = "fusion", shift: float = 0.0) -> pd.DataFrame:
    """Two classes, one more often than the other; two windows a recording; people differ in how well they go."""
    rng, rows = np.random.default_rng(seed), []
    for subject in range(subjects):
        own = np.clip(rate + 0.03 * (subject - subjects / 2) + shift, 0.05, 0.95)
        for n in range(12):
            label = int(n % 3 == 0)
            for window in range(2):
                right = rng.random() < own
                guess = label if right else 1 - label
                row: dict[str, Any] = {"subject": f"p{subject}", "recording": f"r{n}", "window": window, "label": label}
                row |= {f"{source}.logit_{k}": float(guess == k) + 0.01 * rng.random() for k in range(2)}
                rows.append(row | {"fold": subject % 3})
    return pd.DataFrame(rows)


def draw_numbers(noise: float, seed: int, *, subjects: int = 8, source: str = "fusion") -> pd.DataFrame:
    """Valence differs within people; age is one number a person."""
    truth, rng, rows = np.random.default_rng(0), np.random.default_rng(seed), []
    for subject in range(subjects):
        age = 20.0 + 5 * subject
        for n in range(10):
            valence = truth.normal(5, 2)
            row: dict[str, Any] = {"subject": f"p{subject}", "recording": f"r{n}", "window": 0, "fold": 0}
            row |= {"target_0": valence, "target_1": age}
            row |= {f"{source}.value_0": valence + noise * rng.normal(), f"{source}.value_1": age + 5 * rng.normal()}
            rows.append(row)
    return pd.DataFrame(rows)


def make_models() -> list[ModelPredictions]:
    return [
        ModelPredictions("first", ENCODER, "fusion", draw(0.6, 1), 0),
        ModelPredictions("first", ENCODER, "fusion", draw(0.6, 2), 1),
        ModelPredictions("second", ENCODER, "fusion", draw(0.85, 3), 0),
        ModelPredictions("second", ENCODER, "fusion", draw(0.85, 4), 1),
        ModelPredictions("SVM", BASELINE, "svm.eeg", draw(0.55, 5, source="svm.eeg")),
    ]


def compute_by_hand(windows: pd.DataFrame, source: str) -> dict[str, float]:
    """Each person's balanced accuracy of recordings, by scikit-learn."""
    columns = [f"{source}.logit_{k}" for k in range(2)]
    means = windows.groupby(["subject", "recording", "label"])[columns].mean().reset_index()
    guess = means[columns].to_numpy().argmax(1)
    subjects = means.groupby("subject")
    return {str(s): balanced_accuracy_score(own["label"], guess[own.index.to_numpy()]) for s, own in subjects}


KINDS = {"first": ENCODER, "second": ENCODER, "SVM": BASELINE}


def test_a_score_is_the_balanced_accuracy_of_one_persons_recordings() -> None:
    models = make_models()
    scores = score_models(models, "eeg", ())
    assert list(scores) == SCORE_COLUMNS and len(scores) == 5 * 9
    for one in models:
        own = scores[(scores["model"] == one.model) & (scores["seed"].eq(one.seed) if one.seed is not None else True)]
        assert dict(zip(own["subject"], own["score"], strict=True)) == pytest.approx(
            compute_by_hand(one.windows, one.source)
        )
    assert scores[scores["model"] == "SVM"]["seed"].isna().all()
    rows = list_score_rows(scores)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows and rows[-1]["seed"] is None
    assert rows[0]["seed"] == 0 and set(rows[0]) == set(SCORE_COLUMNS)


def test_people_are_compared_after_their_seeds_were_averaged() -> None:
    scores = score_models(make_models(), "eeg", ())
    first, second, baseline = compare_models(scores, KINDS, "first")
    wide = scores.groupby(["subject", "model"])["score"].mean().unstack()
    assert first["comparison"] is None and first["seeds"] == [0, 1] and baseline["seeds"] == []
    expected = compute_share_interval(wide["second"].to_numpy())
    assert (second["mean"], second["interval"]) == (
        pytest.approx(expected.mean),
        pytest.approx([expected.low, expected.high]),
    )
    gains = (wide["second"] - wide["first"]).to_numpy()
    test = second["comparison"]
    assert test["difference"] == pytest.approx(gains.mean())
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert test["interval"] == pytest.approx([interval.low, interval.high])
    p = [signed_rank((wide[m] - wide["first"]).to_numpy())[0] for m in ("second", "SVM")]
    assert [test["p"], baseline["comparison"]["p"]] == pytest.approx(p)
    assert [test["holm"], baseline["comparison"]["holm"]] == pytest.approx(holm(p))
    assert test["n_comparisons"] == 2 and test["n_subjects"] == 9
    by_seed = scores[scores["model"] == "second"].groupby("seed")["score"].mean()
    assert second["seed_sd"] == pytest.approx(by_seed.std()) and baseline["seed_sd"] is None


def test_folds_windows_and_further_recordings_are_no_further_evidence() -> None:
    models = make_models()
    whole = compare_models(score_models(models, "eeg", ()), KINDS, "first")
    repeated = [
        ModelPredictions(
            m.model,
            m.kind,
            m.source,
            pd.concat(
                [m.windows.assign(recording=m.windows["recording"] + copy, fold=0) for copy in ("", "a", "b", "c")]
            ),
            m.seed,
        )
        for m in models
    ]
    assert compare_models(score_models(repeated, "eeg", ()), KINDS, "first") == whole


def test_models_are_scored_on_what_all_encoders_have_and_what_a_baseline_lacks_is_wrong() -> None:
    first, *_ = make_models()
    lacking = draw(0.85, 3)
    lacking = lacking[lacking["recording"] != "r0"]
    baseline = draw(0.95, 6, source="svm.eeg")
    logits = ["svm.eeg.logit_0", "svm.eeg.logit_1"]
    baseline.loc[baseline["subject"] == "p3", logits] = np.nan
    models = [first, ModelPredictions("second", ENCODER, "fusion", lacking, 0)]
    scores = score_models([*models, ModelPredictions("SVM", BASELINE, "svm.eeg", baseline)], "eeg", ())
    without = first.windows[first.windows["recording"] != "r0"]
    own = scores[scores["model"] == "first"].set_index("subject")["score"]
    assert own.to_dict() == pytest.approx(compute_by_hand(without.reset_index(drop=True), "fusion"))
    assert scores[(scores["model"] == "SVM") & (scores["subject"] == "p3")]["score"].tolist() == [0.0]


def test_a_model_that_diverged_names_no_class() -> None:
    broken = draw(0.9, 1)
    broken[["fusion.logit_0", "fusion.logit_1"]] = np.nan
    models = [*make_models()[:2], ModelPredictions("second", ENCODER, "fusion", broken, 0)]
    _, second = compare_models(score_models(models, "eeg", ()), KINDS, "first")
    assert second["mean"] == 0 and second["interval"] == [None, None] and second["comparison"]["difference"] < 0


def test_without_the_reference_nothing_is_compared() -> None:
    scores = score_models(make_models()[2:], "eeg", ())
    rows = compare_models(scores, KINDS, "first")
    assert [row["model"] for row in rows] == ["second", "SVM"] and all(row["comparison"] is None for row in rows)


def test_numbers_are_compared_by_ccc_or_where_nobodys_differ_by_rmse() -> None:
    targets = ("valence", "age")
    tables = {"first": draw_numbers(2.0, 1), "second": draw_numbers(0.5, 2)}
    models = [ModelPredictions(name, ENCODER, "fusion", table, 0) for name, table in tables.items()]
    scores = score_models(models, "eeg", targets)
    spreads = measure_spreads(tables["first"], targets)
    assert spreads["age"] == pytest.approx(tables["first"]["target_1"].std(ddof=0))
    rows = {(r["target"], r["model"]): r for r in compare_models(scores, KINDS, "first", spreads)}
    assert rows["valence", "second"]["measure"] == "ccc" and rows["age", "second"]["measure"] == "rmse"
    both = tables["first"].merge(
        tables["second"].rename(columns=lambda c: c.replace("fusion", "second")).drop(columns=["target_0", "target_1"]),
        on=["subject", "recording", "window", "fold"],
    )
    recordings = average_numbers(both, ["fusion", "second"])
    for k, (target, measure) in enumerate((("valence", "ccc"), ("age", "rmse"))):
        gains = compute_gains(recordings, Rivals(k, target, "second", "fusion", measure))  # pyright: ignore
        test = rows[target, "second"]["comparison"]
        assert test["difference"] == pytest.approx(gains.mean()) and test["n_comparisons"] == 2
        assert test["n_better"] == (gains > 0).sum()
    assert rows["valence", "second"]["comparison"]["difference"] > 0.2
    own = tables["second"].groupby("subject")
    expected = [compute_rmse(t["fusion.value_1"].to_numpy(), t["target_1"].to_numpy()) for _, t in own]
    assert rows["age", "second"]["mean"] == pytest.approx(np.mean(expected))


def test_a_model_of_numbers_that_diverged_has_no_score_and_no_test() -> None:
    broken = draw_numbers(1.0, 3)
    broken.loc[broken["subject"] == "p1", "fusion.value_0"] = math.nan
    models = [
        ModelPredictions("first", ENCODER, "fusion", draw_numbers(1.0, 1), 0),
        ModelPredictions("second", ENCODER, "fusion", broken, 0),
    ]
    rows = compare_models(score_models(models, "eeg", ["valence"]), KINDS, "first", {"valence": 1.0})
    assert rows[1]["mean"] is None and rows[1]["comparison"]["p"] is None
    assert "–" in format_encoders(build_tree(rows, chance={"ccc": 0.0}))


def build_tree(rows: list[dict[str, Any]], *, chance: dict[str, float], modality: str = "eeg") -> dict[str, Any]:
    costed = [row | {"cost": COST if row["kind"] == ENCODER else {}} for row in rows]
    block = {"modality": modality, "reference": "first", "n_subjects": 9, "recordings": 108, "folds": 3}
    block |= {"chance": chance, "rows": costed, "licences": ["<b>: not for commercial use"], "notes": ["a note"]}
    tree = {"name": "t", "protocol": "loso", "access": "source_only", "seeds": [0, 1], "hardware": HARDWARE}
    return tree | {"blocks": [block, block | {"modality": "voice"}]}


def test_the_table_has_a_block_a_modality_with_chance_cost_and_licences() -> None:
    rows = compare_models(score_models(make_models(), "eeg", ()), KINDS, "first")
    tree = build_tree(rows, chance={"balanced_accuracy": 0.5})
    lines = format_encoders(tree).splitlines()
    assert lines.count("EEG: 108 recordings of 9 people, 3 folds") == 1
    assert lines.count("Voice: 108 recordings of 9 people, 3 folds") == 1
    table = lines[2 : 2 + 5]
    assert [line.split()[0] for line in table[1:]] == ["first", "second", "SVM", "chance"][:4]
    assert "better than first" in table[0] and "50.0" in lines[6]
    assert f"{100 * rows[1]['mean']:.1f}" in table[2] and "0.0144" in table[2] and "3.2" in table[2]
    assert "0.0144" not in table[3]  # a baseline has no such cost
    assert lines.count("licence: <b>: not for commercial use") == 2 and lines.count("a note") == 2
    assert describe_comparison(tree) == "loso, 2 seeds; access source_only"
    page = Page("t", build_encoder_sections(tree)).render()
    assert "Encoders of EEG" in page and "&lt;b&gt;: not for commercial use" in page and "What they cost" in page
    assert "averaged over 2 seeds within each person" in page and page.count("<svg") == 2
