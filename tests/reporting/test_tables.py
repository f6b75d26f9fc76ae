"""Tables show what their recordings say, and what is missing is never right."""

import numpy as np
import pandas as pd

from eav_ray.config import MODALITIES
from eav_ray.evaluation.correctness import count_rescues, list_sources, mark_correct_recordings
from eav_ray.evaluation.statistics import compute_subject_accuracy
from eav_ray.reporting.tables import (
    MAX_FOLD_LINES,
    format_accuracy_table,
    format_fusion_comparison,
    format_protocol_table,
    format_statistics,
)

SOURCES = list_sources(MODALITIES)

N_CLASSES = 3


def windows(seed: int = 0, subjects: int = 4, recordings: int = 6, n: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects):
        for recording in range(recordings):
            for window in range(n):
                row = {"subject": f"p{subject}", "recording": f"r{recording}", "window": window}
                row["label"] = recording % N_CLASSES
                row |= {f"{s}.logit_{k}": rng.normal() for s in SOURCES for k in range(N_CLASSES)}
                rows.append(row)
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


def test_a_recordings_answer_is_the_class_of_its_mean_logits() -> None:
    table = windows()
    correct = mark_correct_recordings(table, SOURCES)
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
    assert mark_correct_recordings(table, ["eeg"])["eeg"].tolist() == [True]


def test_a_source_that_is_missing_is_not_right_and_some_missing_windows_do_not_count() -> None:
    table = windows()
    columns = [f"eeg.logit_{k}" for k in range(N_CLASSES)]
    table.loc[table["subject"] == "p0", columns] = np.nan
    table.loc[(table["subject"] == "p1") & (table["window"] > 0), columns] = np.nan
    correct = mark_correct_recordings(table, SOURCES)
    assert not correct[correct["subject"] == "p0"]["eeg"].any()
    assert correct.drop(columns="eeg").equals(mark_correct_recordings(windows(), SOURCES).drop(columns="eeg"))
    first = table[(table["subject"] == "p1") & (table["window"] == 0)].sort_values("recording")
    expected = first[columns].to_numpy().argmax(1) == first["label"].to_numpy()
    assert correct[correct["subject"] == "p1"]["eeg"].tolist() == expected.tolist()


def of(**columns: list[int]) -> pd.DataFrame:
    n = len(columns["fusion"])
    table = pd.DataFrame({name: np.array(values, dtype=bool) for name, values in columns.items()})
    return table.assign(subject=[f"p{i // 4}" for i in range(n)])


WRONG = [0] * 8  # of rules that nothing is compared with


def test_what_a_source_rescues_and_loses_adds_up_to_its_gain() -> None:
    correct = of(
        fusion=[1, 1, 1, 0, 0, 0, 1, 1],
        eeg=[0, 0, 0, 0, 0, 0, 0, 1],
        audio=[1, 1, 0, 0, 1, 0, 1, 0],
        mean_probability=WRONG,
        product=[1, 1, 1, 1, 1, 1, 1, 0],
    )
    table = count_rescues(correct, ["eeg", "audio"], ["product", "mean_probability", "fusion"])
    assert (table.best_single, table.n_wrong, table.n_right) == ("audio", 4, 4)
    counts = {row.source: (row.rescued, row.lost) for row in table.rows}
    assert counts == {"product": (3, 0), "mean_probability": (0, 4), "fusion": (2, 1)}
    for source, (rescued, lost) in counts.items():
        assert rescued - lost == correct[source].sum() - correct["audio"].sum()
    assert "rescued, of 4 recordings that audio gets wrong" in str(table) and "fusion 2 and 1" in str(table)


def test_per_person_is_the_mean_over_that_persons_recordings() -> None:
    subjects = compute_subject_accuracy(
        of(fusion=[1, 1, 1, 0, 0, 0, 0, 1], eeg=[1, 0, 0, 0, 1, 1, 1, 1]), ["eeg", "fusion"]
    )
    assert subjects.loc["p0"].to_dict() == {"eeg": 0.25, "fusion": 0.75}
    assert subjects.loc["p1"].to_dict() == {"eeg": 1.0, "fusion": 0.25}


def test_the_table_shows_mean_and_sd_over_people_chance_and_bayes() -> None:
    correct = of(fusion=[1, 1, 1, 0, 0, 0, 0, 1], eeg=[1, 0, 0, 0, 1, 1, 1, 1])
    lines = format_accuracy_table(correct, ["eeg", "fusion"], 5, {"eeg": 0.9}).splitlines()
    assert lines[1].split() == ["eeg", "62.50", "53.03", "25.00", "100.00", "90.00"]
    assert lines[2].split() == ["fusion", "50.00", "35.36", "75.00", "25.00"]
    assert lines[3].split() == ["chance", "20.00"]
    one = format_accuracy_table(correct[:4], ["eeg"], 5, {}).splitlines()
    assert one[1].split() == ["eeg", "25.00", "–", "25.00"]


NAMES = ["audio", "eeg", "video"]
COLLAPSED = {"check": "single attention key", "value": 1, "text": "the attention of this fusion sees 1 key"}
UNUSED = {"check": "unused modality", "value": 0, "text": "without audio the loss is no higher"}


def folds(subjects: int) -> pd.DataFrame:
    """A person a fold."""
    table = windows(subjects=subjects)
    return table.assign(fold=table["subject"].str[1:].astype(int))


def test_the_table_of_a_protocol_has_the_numbers_of_all_folds_together_and_of_each() -> None:
    table = folds(4)
    correct = mark_correct_recordings(table, SOURCES)
    lines = format_protocol_table(table, NAMES, N_CLASSES, {}).splitlines()
    subjects = compute_subject_accuracy(correct, SOURCES) * 100
    n = len(SOURCES)
    for line, source in zip(lines[1 : 1 + n], SOURCES, strict=True):
        assert line.split() == [source, f"{subjects[source].mean():.2f}", f"{subjects[source].std(ddof=1):.2f}"]
    assert lines[1 + n].split() == ["chance", "33.33"]
    compared = format_fusion_comparison(correct, NAMES).splitlines()
    assert lines[2 + n : 4 + n] == compared and "rescued" in compared[0] and "cannot be said of 4 people" in compared[1]
    start = next(n for n, line in enumerate(lines) if line.split() == ["fold", "people", *SOURCES])
    assert lines[4 + n : start] == format_statistics(correct, NAMES, N_CLASSES).splitlines()
    for number, line in enumerate(lines[start + 1 :]):
        own = [f"{subjects.loc[f'p{number}', s]:.2f}" for s in SOURCES]
        assert line.split() == [str(number), f"p{number}", *own]
    assert len(lines) == start + 5


def test_of_one_person_the_fusion_is_counted_against_the_best_modality() -> None:
    table = folds(1)
    lines = format_protocol_table(table, NAMES, N_CLASSES, {}).splitlines()
    n = 2 + len(SOURCES)
    compared = format_fusion_comparison(mark_correct_recordings(table, SOURCES), NAMES).splitlines()
    assert lines[n : n + 4] == compared
    for line in compared[:2]:
        assert "no interval" in line and "of 1 person no difference could be significant" in line
    assert "cannot be said of 1 person" in compared[3]


def test_a_fold_of_several_people_is_the_mean_over_them() -> None:
    table = folds(4).assign(fold=0)
    lines = format_protocol_table(table, NAMES, N_CLASSES, {}).splitlines()
    assert lines[-1].split()[:3] == ["0", "4", "people"]
    assert lines[-1].split()[3:] == [line.split()[1] for line in lines[1 : 1 + len(SOURCES)]]


def test_many_folds_have_no_line_each() -> None:
    few, many = (
        format_protocol_table(folds(n), NAMES, N_CLASSES, {}).splitlines() for n in (MAX_FOLD_LINES, MAX_FOLD_LINES + 1)
    )
    assert len(few) - len(many) == MAX_FOLD_LINES + 1 and not any(line.startswith("fold ") for line in many)


def test_one_modality_alone_is_compared_with_nothing() -> None:
    table = format_protocol_table(folds(2), ["eeg"], N_CLASSES, {})
    assert not any(word in table for word in ("fusion", "product", "paired", "oracle"))
    first = [line.split()[0] for line in table.splitlines()[1:]]
    assert first == ["eeg", "chance", "intervals:", "eeg", "chance", "fold", "0", "1"]


def test_collapse_warnings_are_counted_by_folds_in_one_line() -> None:
    findings = {0: [COLLAPSED, UNUSED, UNUSED], 1: [], 2: [COLLAPSED], 3: []}
    (line,) = [x for x in format_protocol_table(folds(4), NAMES, N_CLASSES, findings).splitlines() if "warning" in x]
    assert "single attention key (2 of 4)" in line and "unused modality (1 of 4)" in line
    assert "warning" not in format_protocol_table(folds(4), NAMES, N_CLASSES, dict.fromkeys(range(4), []))
