"""Numbers in place of classes are read from the table of recordings, and from a table beside any data set, as they
stand; what cannot be meant is said."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.config import Experiment, load_experiment, override
from eav_ray.config.data_sections import TargetData
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.recordings import Listing
from eav_ray.errors import ConfigError, DataError
from tests.helpers.given_targets import TARGETS, list_targets, read_recordings, write_recordings, write_target_tables
from tests.helpers.toy_dataset import ToyDataset
from tests.helpers.toy_dataset import write_recordings as write_toy_recordings


def load(folder: Path, **changes: Any) -> Experiment:
    return load_experiment("fusion", write_target_tables(folder) | changes)


def scan(e: Experiment, *, needs_truth: bool = True) -> Listing:
    return registry.scan_dataset(e.data, e.preprocessing.features, needs_truth=needs_truth)[1]


def collect(listing: Listing) -> dict[str, tuple[float, ...]]:
    assert all(r.label == 0 for r in listing.recordings)
    return {r.id: r.targets for r in listing.recordings}


def write_as(folder: Path, form: str, table: pd.DataFrame, name: str = "recordings") -> Path:
    """Write a table in one of the forms that laboratories have."""
    path = folder / f"{name}.{form.split()[0]}"
    match form.split():
        case ["parquet", *_]:
            table.to_parquet(path)
        case [_, separator, decimal, encoding]:
            separator = {"semicolon": ";", "tab": "\t", "comma": ","}[separator]
            table.to_csv(path, index=False, sep=separator, decimal=decimal, encoding=encoding)
    return path


FORMS = ["csv comma . utf-8", "csv semicolon , utf-16", "csv semicolon . cp1252", "tsv tab , utf-8", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_the_table_of_recordings_are_the_numbers(tmp_path: Path, form: str) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    path = write_as(tmp_path, form, table)
    listing = scan(override(e, {"data.root": str(path)}))
    assert collect(listing) == list_targets(table) and not listing.problems
    commas = [f"{path}: {name} has decimal commas; " in "\n".join(listing.remarks) for name in TARGETS]
    assert commas == [" , " in form] * 2
    reader = registry.open_reader(e.data)
    assert reader.classes == registry.list_classes(e.data, reader) == ()


@pytest.mark.parametrize("form", FORMS)
def test_so_are_those_of_a_table_beside_any_data_set(tmp_path: Path, form: str) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    ratings = table.assign(clip=table["subject"] + "/" + table["recording"]).drop(columns=["subject", "recording"])
    path = write_as(tmp_path, form, ratings.sample(frac=1, random_state=0), "ratings")
    write_recordings(tmp_path, table.drop(columns=list(TARGETS)))
    changes = {"data.targets": {"columns": list(TARGETS), "path": str(path), "key": "clip"}}
    listing = scan(override(e, changes))
    assert collect(listing) == list_targets(table) and not listing.problems


def test_the_order_of_rows_and_columns_is_that_of_the_experiment(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    expected = list_targets(table)
    write_recordings(tmp_path, table[["arousal", "recording", "valence", "subject"]].sample(frac=1, random_state=1))
    assert collect(scan(e)) == expected
    turned = override(e, {"data.targets.columns": list(TARGETS[::-1])})
    assert collect(scan(turned)) == {name: values[::-1] for name, values in expected.items()}


def test_a_label_beside_numbers_is_not_used(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    write_recordings(tmp_path, table.assign(label=["", "calm\nglad", *["calm"] * (len(table) - 2)]))
    listing = scan(e)
    assert collect(listing) == list_targets(table) and not listing.problems
    (remark,) = listing.remarks
    assert "columns that are not used: label; used are subject, recording, " in remark
    assert remark.endswith("order, valence, arousal")
    table.assign(label=[[1, 2]] * len(table)).to_parquet(tmp_path / "m.parquet")
    assert collect(scan(override(e, {"data.root": str(tmp_path / "m.parquet")}))) == list_targets(table)


def test_the_label_itself_may_be_the_number(tmp_path: Path) -> None:
    e = override(load(tmp_path), {"data.targets.columns": ["label"]})
    table = read_recordings(tmp_path)
    write_recordings(tmp_path, table.assign(label=table["valence"]))
    assert collect(scan(e)) == {name: values[:1] for name, values in list_targets(table).items()}


def test_readers_of_the_package_and_plugins_take_a_table(tmp_path: Path) -> None:
    write_toy_recordings(tmp_path / "toy", seconds=1)
    for actor in ("01", "02"):
        (tmp_path / "clips" / f"Actor_{actor}").mkdir(parents=True)
        for emotion in ("03", "04"):
            name = f"03-01-{emotion}-01-01-01-{actor}.wav"
            (tmp_path / "clips" / f"Actor_{actor}" / name).touch()
    toy = {"data.dataset": ToyDataset.name, "data.root": str(tmp_path / "toy"), "data.modalities": ["eeg"]}
    clips = {"data.dataset": "ravdess", "data.root": str(tmp_path / "clips"), "data.modalities": ["audio"]}
    for number, data in enumerate((toy, clips)):
        e = override(Experiment(), data)
        known = registry.scan_dataset(e.data)[1].recordings
        # Full names for one, and names of files for the other.
        names = [r.id for r in known] if number else [Path(str(r.eeg)).stem for r in known]
        ratings = pd.DataFrame({"file": names, "score": np.arange(len(known)) / 3})
        ratings.sample(frac=1, random_state=2).to_csv(tmp_path / "scores.csv", index=False)
        targets = {"columns": ["score"], "path": str(tmp_path / "scores.csv"), "key": "file"}
        reader, listing = registry.scan_dataset(override(e, {"data.targets": targets}).data)
        assert [r.id for r in listing.recordings] == [r.id for r in known]
        assert [r.targets for r in listing.recordings] == [(x,) for x in ratings["score"]]
        assert reader.classes and registry.list_classes(override(e, {"data.targets": targets}).data, reader) == ()
        with pytest.raises(DataError, match=f"data.targets.path is empty, and data.dataset={e.data.dataset} has no"):
            registry.scan_dataset(override(e, {"data.targets": {"columns": ["score"]}}).data)


CELLS = {"1.5": 1.5, "-2e3": -2000.0, "0": 0.0, "": None, "NA": None, "x": None, "inf": None, "1;5": None}


@given(rows=st.lists(st.tuples(st.sampled_from(list(CELLS)), st.sampled_from(list(CELLS))), min_size=1, max_size=12))
def test_each_row_is_a_recording_with_all_of_its_numbers_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "m.csv"
    lines = [f"p,{number},{a},{b}" for number, (a, b) in enumerate(rows)]
    path.write_text("\n".join(["subject,recording,a,b", *lines]) + "\n")
    expected = {f"p/{n}": (CELLS[a], CELLS[b]) for n, (a, b) in enumerate(rows) if None not in (CELLS[a], CELLS[b])}
    targets = TargetData(columns=("a", "b"))
    if not expected:
        with pytest.raises(DataError, match="has no row with all of a, b"):
            RecordingsTable(str(path), needs_media=False, targets=targets)
    else:
        listing = RecordingsTable(str(path), needs_media=False, targets=targets).scan()
        assert {r.id: r.targets for r in listing.recordings} == expected
        assert len(listing.problems) == len(rows) - len(expected)
    predicted = RecordingsTable(str(path), needs_media=False, targets=targets, needs_truth=False).scan()
    assert not predicted.problems
    found = [tuple(None if math.isnan(x) else x for x in r.targets) for r in predicted.recordings]
    assert found == [(CELLS[a], CELLS[b]) for a, b in rows]


@pytest.mark.parametrize("is_own_file", [False, True])
def test_a_row_without_its_numbers_is_left_out_and_said(tmp_path: Path, is_own_file: bool) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    expected = list_targets(table)
    cells = table.astype({name: object for name in TARGETS})
    for row, (name, cell) in enumerate([("valence", ""), ("arousal", "high"), ("valence", "inf"), ("valence", "#N/A")]):
        cells.loc[row, name] = cell
    cells.loc[4, list(TARGETS)] = ["", "1,5"]
    write_recordings(tmp_path, cells)
    if is_own_file:
        (tmp_path / "recordings.csv").rename(tmp_path / "ratings.csv")
        write_recordings(tmp_path, table[["subject", "recording"]])
        targets = {"columns": list(TARGETS), "path": str(tmp_path / "ratings.csv")}
        e = override(e, {"data.targets": targets})
    listing = scan(e)
    assert collect(listing) == dict(list(expected.items())[5:])
    assert [
        (p.subject, p.recording, p.reason.removesuffix("; correct it, or leave the recording out"))
        for p in listing.problems
    ] == [
        ("p0", "r00", "row 1: valence is empty"),
        ("p0", "r01", "row 2: arousal is 'high', which is no number"),
        ("p0", "r02", "row 3: valence is 'inf', which is no number"),
        ("p0", "r03", "row 4: valence is empty (#N/A means empty)"),
        ("p0", "r04", "row 5: valence is empty and arousal is '1,5', which is no number (write a point for the comma)"),
    ]


def test_a_recording_that_no_row_names_is_left_out_and_said(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    path = tmp_path / "ratings.csv"
    table.iloc[2:].assign(recording=lambda t: t["recording"].where(t.index != 5, "r99")).to_csv(path, index=False)
    listing = scan(override(e, {"data.targets": {"columns": list(TARGETS), "path": str(path)}}))
    assert len(listing.recordings) == len(table) - 3
    assert [(p.subject, p.recording) for p in listing.problems] == [("p0", "r00"), ("p0", "r01"), ("p0", "r05")]
    assert all(f"no row of {path} names it by recording" in p.reason for p in listing.problems)
    unused = f"1 of {len(table) - 2} rows name no recording (the first: row 4, 'r99' of subject 'p0'), and are not used"
    assert any(unused in remark for remark in listing.remarks)


def test_a_row_is_of_the_subject_that_it_names_and_of_no_other(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    only = table.iloc[[0, 13]]  # p0/r00 and p1/r01, whose names are of one subject each
    write_recordings(tmp_path, only.drop(columns=list(TARGETS)))
    path = tmp_path / "ratings.csv"
    pd.concat([only, only.assign(subject="p9", valence=9.0)]).to_csv(path, index=False)
    changed = override(e, {"data.targets": {"columns": list(TARGETS), "path": str(path)}})
    listing = scan(changed)
    assert collect(listing) == list_targets(only)
    assert any("2 of 4 rows name no recording" in remark for remark in listing.remarks)
    only.assign(subject=["p9", "p1"]).to_csv(path, index=False)
    listing = scan(changed)
    assert [r.id for r in listing.recordings] == ["p1/r01"] and [p.recording for p in listing.problems] == ["r00"]


def break_column(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.targets.columns": ["valance"]}


def break_path(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.targets.path": str(folder / "nothing.csv")}


def give_folder(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.targets.path": str(folder)}


def break_key(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.targets": {"columns": ["valence"], "path": str(folder / "recordings.csv"), "key": "clip"}}


def name_nobody(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    table.assign(subject="x").to_csv(folder / "ratings.csv", index=False)
    return {"data.targets": {"columns": ["valence"], "path": str(folder / "ratings.csv"), "key": "subject"}}


def name_twice(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    pd.concat([table, table[:1]]).to_csv(folder / "ratings.csv", index=False)
    return {"data.targets.path": str(folder / "ratings.csv")}


def write_text(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    write_recordings(folder, table.assign(valence="high"))
    return {}


def write_text_beside(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    table.assign(valence="high").to_csv(folder / "ratings.csv", index=False)
    return {"data.targets.path": str(folder / "ratings.csv")}


def write_constant(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    write_recordings(folder, table.assign(arousal=3))
    return {}


def mix_marks(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    rows = "p0;r00;1.234\np0;r01;0,5\n"
    (folder / "recordings.csv").write_text(f"subject;recording;valence\n{rows}")
    return {"data.targets.columns": ["valence"]}


def use_input(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    write_recordings(folder, table.assign(clip=table["subject"] + "/" + table["recording"]))
    file = {"path": str(folder / "recordings.csv"), "key": "clip"}
    return {"data.features": {"face": file}, "preprocessing.features": {"face": {"columns": ["arousal"]}}}


def use_input_beside(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    (folder / "link.csv").symlink_to(folder / "faces.csv")
    targets = {"columns": ["AU12"], "path": str(folder / "link.csv"), "key": "clip"}
    return {"data.targets": targets}


def take_order(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.targets.columns": ["order"]}


def leave_no_rows(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    write_recordings(folder, table[:0])
    return {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_column, 'no column valance, which data.targets.columns names; it has .*; did you mean "valence"'),
        (break_path, "data.targets.path is '.*nothing.csv', which is no file"),
        (give_folder, "data.targets.path is '.*', which is no file"),
        (break_key, "has no column clip; it begins with subject, .*; set data.targets.key to"),
        (name_nobody, "data.targets: no row of .* names a recording; subject is 'x' there.* set data.targets.key"),
        (name_twice, "row 73 names r00, which another has named already; keep one"),
        (write_text, "has no row with all of valence, arousal .row 1: valence is 'high', which is no number.; fill"),
        (write_text_beside, "no recording has all of valence, arousal; the first: row 1: valence is 'high'"),
        (write_constant, "arousal is 3 in all 72 recordings: there is nothing to predict"),
        (mix_marks, r"column valence has numbers with a point \(1.234\) and with a comma \(0,5\)"),
        (use_input, "arousal is to be predicted .data.targets.columns., and is an input too .preprocessing.features.f"),
        (use_input_beside, "AU12 is to be predicted .data.targets.columns., and is an input too"),
        (take_order, "data.targets.columns names order, which means something else in .*recordings.csv"),
        (leave_no_rows, "has no row with all of valence, arousal; fill them in"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_a_line(damage: Any, message: str, tmp_path: Path) -> None:
    changes = write_target_tables(tmp_path)
    damaged = damage(tmp_path, read_recordings(tmp_path))
    if damaged.get("data.targets.path"):
        changes.pop("data.targets")
        damaged |= {"data.targets": {"columns": list(TARGETS), "path": damaged.pop("data.targets.path")}}
    elif "data.targets.columns" in damaged:
        changes.pop("data.targets")
        damaged |= {"data.targets": {"columns": damaged.pop("data.targets.columns")}}
    e = load_experiment("fusion", changes | damaged)
    with pytest.raises(DataError, match=message) as caught:
        scan(e)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"columns": ["a", "b", "a"]}, "data.targets: columns names a twice; name each once"),
        ({"columns": ["participants.a", "events.a"]}, "columns names a twice"),
        ({"columns": ["a", ""]}, "columns has an empty name"),
        ({"path": "ratings.csv"}, "path is given without columns"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment("fusion", {"data.targets": targets})


def test_numbers_of_chosen_subjects_count_alone(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    table.loc[table["subject"] == "p1", "arousal"] = 4
    table.loc[0, "valence"] = np.nan
    write_recordings(tmp_path, table)
    chosen = scan(override(e, {"data.subjects": ["p2"]}))
    assert {r.subject for r in chosen.recordings} == {"p2"} and not chosen.problems
    with pytest.raises(DataError, match="arousal is 4 in all 12 recordings"):
        scan(override(e, {"data.subjects": ["p1"]}))


# Recordings that are predicted


def test_recordings_are_predicted_without_any_number(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    write_recordings(tmp_path, table[["subject", "recording"]])
    with pytest.raises(DataError, match="has no column valence"):
        scan(e)
    listing = scan(e, needs_truth=False)
    assert len(listing.recordings) == len(table) and not listing.problems
    assert all(len(r.targets) == 2 and all(map(math.isnan, r.targets)) for r in listing.recordings)
    write_recordings(
        tmp_path, table[["subject", "recording", "arousal"]].assign(arousal=["", "x", *table["arousal"][2:]])
    )
    values = np.array([r.targets for r in scan(e, needs_truth=False).recordings])
    np.testing.assert_array_equal(np.isnan(values[:, 0]), True)
    np.testing.assert_array_equal(values[:, 1], [np.nan, np.nan, *table["arousal"][2:]])


def test_recordings_are_predicted_though_a_table_of_others_names_none_of_them(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    path = tmp_path / "ratings.csv"
    table.assign(subject="q" + table["subject"]).to_csv(path, index=False)
    write_recordings(tmp_path, table.drop(columns=list(TARGETS)))
    changed = override(e, {"data.targets": {"columns": list(TARGETS), "path": str(path)}})
    for _ in range(2):  # first as it is, then without it
        listing = scan(changed, needs_truth=False)
        assert len(listing.recordings) == len(table)
        assert all(all(map(math.isnan, r.targets)) for r in listing.recordings)
        assert any(remark.startswith("no true numbers: data.targets") for remark in listing.remarks), listing.remarks
        path.unlink(missing_ok=True)


def test_recordings_are_predicted_without_labels(tmp_path: Path) -> None:
    e = override(load(tmp_path), {"data.targets": {"columns": []}})
    table = read_recordings(tmp_path)[["subject", "recording"]]
    write_recordings(tmp_path, table)
    with pytest.raises(DataError, match="has no column label"):
        scan(e)
    reader, listing = registry.scan_dataset(e.data, e.preprocessing.features, needs_truth=False)
    assert reader.classes == () and {r.label for r in listing.recordings} == {-1} and not listing.problems
    write_recordings(tmp_path, table.assign(label=["", "NA", *["sad", "calm"] * 35]))
    reader, listing = registry.scan_dataset(e.data, e.preprocessing.features, needs_truth=False)
    assert reader.classes == ("calm", "sad") and not listing.problems
    assert [r.label for r in listing.recordings[:4]] == [-1, -1, 1, 0]
    problems = scan(e).problems
    assert [p.reason for p in problems] == [
        "row 1 has no label; fill it in: training needs labels or numbers, `eav predict` does not",
        "row 2 has no label (NA means empty); fill it in: training needs labels or numbers, `eav predict` does not",
    ]
