"""Fusion is compared with the best single modality on the same recordings, and what is missing is never right."""

import numpy as np
import pandas as pd
import pytest

from eav_ray.report.table import SOURCES, compare, correct_per_recording, per_person, render

N_CLASSES = 3


def windows(seed: int = 0, people: int = 4, recordings: int = 6, n: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(people):
        for recording in range(recordings):
            for window in range(n):
                row = {"subject": f"p{person}", "recording": f"r{recording}", "window": window}
                row["label"] = recording % N_CLASSES
                row |= {f"{s}.logit_{k}": rng.normal() for s in SOURCES for k in range(N_CLASSES)}
                rows.append(row)
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


def test_a_recordings_answer_is_the_class_of_its_mean_logits() -> None:
    table = windows()
    correct = correct_per_recording(table, list(SOURCES))
    assert len(correct) == 24
    for row in correct.to_dict("records"):
        own = table[(table["subject"] == row["subject"]) & (table["recording"] == row["recording"])]
        for source in SOURCES:
            means = [own[f"{source}.logit_{k}"].mean() for k in range(N_CLASSES)]
            assert row[source] == (int(np.argmax(means)) == row["label"])


def test_classes_are_ordered_as_numbers() -> None:
    """Class 10 comes after class 9, not after class 1."""
    row = {"subject": "p", "recording": "r", "window": 0, "label": 2}
    table = pd.DataFrame([row | {f"eeg.logit_{k}": float(k == 2) for k in (10, 1, 0, 2, 3, 4, 5, 6, 7, 8, 9)}])
    assert correct_per_recording(table, ["eeg"])["eeg"].tolist() == [True]


def test_a_source_that_is_missing_is_not_right_and_some_missing_windows_do_not_count() -> None:
    table = windows()
    columns = [f"eeg.logit_{k}" for k in range(N_CLASSES)]
    table.loc[table["subject"] == "p0", columns] = np.nan
    table.loc[(table["subject"] == "p1") & (table["window"] > 0), columns] = np.nan
    correct = correct_per_recording(table, list(SOURCES))
    assert not correct[correct["subject"] == "p0"]["eeg"].any()
    assert correct.drop(columns="eeg").equals(correct_per_recording(windows(), list(SOURCES)).drop(columns="eeg"))
    first = table[(table["subject"] == "p1") & (table["window"] == 0)].sort_values("recording")
    expected = first[columns].to_numpy().argmax(1) == first["label"].to_numpy()
    assert correct[correct["subject"] == "p1"]["eeg"].tolist() == expected.tolist()


def of(**columns: list[int]) -> pd.DataFrame:
    n = len(columns["fusion"])
    table = pd.DataFrame({name: np.array(values, dtype=bool) for name, values in columns.items()})
    return table.assign(subject=[f"p{i // 4}" for i in range(n)])


def test_the_comparison_is_paired_and_with_the_best_single_modality() -> None:
    correct = of(
        fusion=[1, 1, 1, 1, 0, 0, 1, 1],
        eeg=[0, 0, 0, 0, 0, 0, 0, 1],
        audio=[1, 1, 0, 0, 1, 0, 1, 0],
    )
    found = compare(correct, ["eeg", "audio"])
    assert found.best_single == "audio"
    assert (found.fusion_only, found.single_only) == (3, 1)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 2**4)  # both tails of 4 fair coins, 3 or more of a kind
    assert found.fusion_wins
    shuffled = correct.assign(fusion=correct["fusion"].to_numpy()[::-1])
    assert compare(shuffled, ["eeg", "audio"]).fusion_only != found.fusion_only  # equal accuracy, other pairs


def test_equal_answers_are_no_win() -> None:
    same = compare(of(fusion=[1, 0, 1, 1], eeg=[1, 0, 1, 1]), ["eeg"])
    assert (same.fusion_only, same.single_only, same.p_value) == (0, 0, 1.0)
    assert not same.fusion_wins
    assert not compare(of(fusion=[0, 0, 1, 1], eeg=[1, 0, 1, 1]), ["eeg"]).fusion_wins


def test_per_person_is_the_mean_over_that_persons_recordings() -> None:
    people = per_person(of(fusion=[1, 1, 1, 0, 0, 0, 0, 1], eeg=[1, 0, 0, 0, 1, 1, 1, 1]), ["eeg", "fusion"])
    assert people.loc["p0"].to_dict() == {"eeg": 0.25, "fusion": 0.75}
    assert people.loc["p1"].to_dict() == {"eeg": 1.0, "fusion": 0.25}


def test_the_table_shows_mean_and_sd_over_people_chance_and_bayes() -> None:
    correct = of(fusion=[1, 1, 1, 0, 0, 0, 0, 1], eeg=[1, 0, 0, 0, 1, 1, 1, 1])
    lines = render(correct, ["eeg", "fusion"], 5, {"eeg": 0.9}).splitlines()
    assert lines[1].split() == ["eeg", "62.50", "53.03", "25.00", "100.00", "90.00"]
    assert lines[2].split() == ["fusion", "50.00", "35.36", "75.00", "25.00"]
    assert lines[3].split() == ["chance", "20.00"]
    one = render(correct[:4], ["eeg"], 5, {}).splitlines()
    assert one[1].split() == ["eeg", "25.00", "-", "25.00"]
