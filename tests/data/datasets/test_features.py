"""Features that others have computed are read from tables and files, and belong to the recordings that they name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from eav_ray.config import Experiment, FeaturePreprocessing, load_experiment
from eav_ray.data.datasets import registry
from eav_ray.data.io.features import read_feature_file
from eav_ray.data.modalities.features import average_into_steps
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.recordings import Recording
from eav_ray.errors import ConfigError, DataError
from tests.helpers.given_features import COLUMNS, N_RECORDINGS, N_SUBJECTS, write_tables


def load(folder: Path, **changes: Any) -> Experiment:
    return load_experiment("fusion", write_tables(folder) | changes)


def scan(e: Experiment) -> tuple[Recording, ...]:
    return registry.scan_dataset(e.data, e.preprocessing.features)[1].recordings


def cut(e: Experiment, recording: Recording) -> list[dict[str, Any]]:
    windowed = cut_recording(recording, WindowFormat(e.preprocessing, e.data.modalities, 0), None)
    assert not windowed.problems, windowed.problems
    return windowed.windows


def test_a_row_of_a_table_is_a_window_of_its_recording(tmp_path: Path) -> None:
    e = load(tmp_path)
    recordings = scan(e)
    assert len(recordings) == N_SUBJECTS * N_RECORDINGS
    table = pd.read_csv(tmp_path / "faces.csv").set_index("clip")
    for recording in recordings:
        (window,) = cut(e, recording)
        assert window["has_face"] and window["face"].dtype == np.float32
        np.testing.assert_allclose(window["face"], [table.loc[recording.id, list(COLUMNS)].to_numpy(float)], rtol=1e-6)


def test_the_order_of_columns_is_that_of_the_experiment_and_not_of_the_file(tmp_path: Path) -> None:
    e = load(tmp_path)
    first = cut(e, scan(e)[0])[0]["face"]
    table = pd.read_csv(tmp_path / "faces.csv")
    table[["AU45", "note", "AU12", "clip", "AU01"]].to_csv(tmp_path / "faces.csv", index=False)
    np.testing.assert_array_equal(cut(e, scan(e)[0])[0]["face"], first)


def test_a_recording_without_a_row_lacks_the_modality(tmp_path: Path) -> None:
    write_tables(tmp_path)
    e = load_experiment("fusion", write_tables(tmp_path, missing=2))
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    assert len(listing.recordings) == N_SUBJECTS * (N_RECORDINGS - 2)
    assert len(listing.problems) == 2 * N_SUBJECTS and "has none of face" in listing.problems[0].reason


def test_an_empty_cell_is_not_known(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = pd.read_csv(tmp_path / "faces.csv")
    table.loc[0, "AU12"] = np.nan
    table.to_csv(tmp_path / "faces.csv", index=False)
    (window,) = cut(e, scan(e)[0])
    assert np.isnan(window["face"][0]).tolist() == [False, True, False]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_rows_over_time_are_averaged_into_the_parts_of_a_window(suffix: str, tmp_path: Path) -> None:
    changes = write_tables(tmp_path)
    values = np.arange(60, dtype=np.float32).reshape(20, 3)  # at 4 rows a second: 5 s
    folder = tmp_path / "faces" / "p0"
    folder.mkdir(parents=True)
    times_s = (np.arange(20) + 0.5) / 4
    if suffix == ".npy":
        np.save(folder / "r00.npy", values)
    elif suffix == ".safetensors":
        safetensors.numpy.save_file({"values": values, "time_s": times_s}, folder / "r00.safetensors")
    else:
        columns = dict(zip(COLUMNS, values.T, strict=True))
        pd.DataFrame({"time_s": times_s} | columns).to_parquet(folder / "r00.parquet")
    changes |= {"data.features": {"face": {"path": str(tmp_path / "faces"), "hz": 4 if suffix == ".npy" else 0}}}
    changes |= {"preprocessing.features": {"face": {"columns": list(COLUMNS), "steps": 5}}}
    e = load_experiment("fusion", changes)
    recording = next(r for r in scan(e) if r.id == "p0/r00")
    (window,) = cut(e, recording)
    np.testing.assert_allclose(window["face"], values.reshape(5, 4, 3).mean(1), rtol=1e-6)


def test_parts_without_a_row_are_not_known_and_rows_elsewhere_do_not_count() -> None:
    times_s, values = np.array([-0.1, 0.2, 0.4, 1.5, 9.0]), np.array([[9.0], [1], [3], [np.nan], [9]])
    steps = average_into_steps(times_s, values, window_s=1, steps=1, duration_s=3)
    np.testing.assert_array_equal(steps, np.array([[2.0], [np.nan], [np.nan]], np.float32))


def test_features_of_a_whole_recording_stand_in_each_of_its_windows(tmp_path: Path) -> None:
    import soundfile

    changes = write_tables(tmp_path) | {"data.modalities": ["audio", "face"]}
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(16000 * 12), 16000)
    table = pd.read_csv(tmp_path / "recordings.csv").assign(audio="a.wav")
    table.to_csv(tmp_path / "recordings.csv", index=False)
    e = load_experiment("fusion", changes)
    windows = cut(e, scan(e)[0])
    assert [(w["has_audio"], w["has_face"]) for w in windows] == [(True, True), (True, True)]
    np.testing.assert_array_equal(windows[0]["face"], windows[1]["face"])


def break_key(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.features": {"face": {"path": str(folder / "faces.csv"), "key": "clips"}}}


def break_column(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"preprocessing.features": {"face": {"columns": ["AU1"]}}}


def break_cell(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"preprocessing.features": {"face": {"columns": ["AU01", "note"]}}}


def name_twice(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    pd.concat([table, table[:1]]).to_csv(folder / "faces.csv", index=False)
    return {}


def name_nobody(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    table.assign(clip="film 7").to_csv(folder / "faces.csv", index=False)
    return {}


def name_many(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    table.assign(clip=table["clip"].str.split("/").str[1]).drop_duplicates("clip").to_csv(
        folder / "faces.csv", index=False
    )
    return {}


def lose_file(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"data.features": {"face": {"path": str(folder / "nothing.csv"), "key": "clip"}}}


def give_other_width(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"preprocessing.features": {"face": {"columns": list(COLUMNS), "width": 4}}}


def choose_no_columns(folder: Path, table: pd.DataFrame) -> dict[str, Any]:
    return {"preprocessing.features": {"face": {"width": 3}}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_key, "has no column clips; it begins with clip, note.*data.features.face.key"),
        (break_column, 'no column AU1, which preprocessing.features.face.columns names; did you mean "AU'),
        (break_cell, "column note does not hold one number"),
        (name_twice, "row 73 names p0/r00, which another has named already"),
        (name_nobody, "no row of .* names a recording; clip is 'film 7' there.*p0/r00 or r00"),
        (name_many, "names r00, which are 6 recordings: p0/r00, p1/r00, p2/r00; name them as subject/recording"),
        (lose_file, "data.features.face.path is .*nothing.csv.*does not exist"),
        (give_other_width, "the columns hold 3 features, preprocessing.features.face says 4"),
        (choose_no_columns, r"choose its columns: preprocessing.features.face.columns=\[note, AU01, AU12, AU45\]"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    changes = write_tables(tmp_path)
    changes |= damage(tmp_path, pd.read_csv(tmp_path / "faces.csv"))
    e = load_experiment("fusion", changes)
    with pytest.raises(DataError, match=message):
        scan(e)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((4, 2)), "an array of 4 x 2; .* wants rows of 3 features"),
        (np.zeros((4, 3)), "does not say when its 4 rows are; give their rate .data.features.face.hz"),
        (np.array([{}], object), "cannot be read as features"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(content: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_feature_file(tmp_path / "a.npy", "face", FeaturePreprocessing(width=3), 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.modalities": ["face"]},
            "data.modalities names face; use audio, eeg, video.*preprocessing.features.face",
        ),
        ({"model.fase.width": 3}, '"model.fase" is not a key of an experiment'),
        ({"preprocessing.features": {"audio": {"width": 3}}}, "audio is read from recordings; name"),
        ({"preprocessing.features": {"label": {"width": 3}}}, '"label" cannot be the name of a modality'),
        ({"preprocessing.features": {"face": {}}}, "give columns=.* width=.* or signals="),
        ({"preprocessing.features": {"face": {"columns": ["a", "a"]}}}, "columns names one twice"),
        ({"data.features": {"face": {"path": "x"}}}, '"data.features.face" is not a key'),
    ],
)
def test_a_name_that_is_declared_nowhere_or_taken_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment("fusion", changes)


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_tables_of_spreadsheets_hold_the_same_features(tmp_path: Path, separator: str, decimal: str) -> None:
    e = load(tmp_path)
    expected = cut(e, scan(e)[0])[0]["face"]
    table = pd.read_csv(tmp_path / "faces.csv")
    table.to_csv(tmp_path / "faces.csv", index=False, sep=separator, decimal=decimal, encoding="utf-16")
    np.testing.assert_array_equal(cut(e, scan(e)[0])[0]["face"], expected)


def test_points_and_commas_in_one_column_of_numbers_are_refused(tmp_path: Path) -> None:
    e = load(tmp_path)
    (tmp_path / "faces.csv").write_text("clip;AU01;AU12;AU45\np0/r00;1.234;1;1\np0/r01;0,5;1;1\n")
    with pytest.raises(DataError, match=r"column AU01 has numbers with a point \(1.234\) and with a comma \(0,5\)"):
        scan(e)


def test_marks_of_empty_cells_are_not_known(tmp_path: Path) -> None:
    e = load(tmp_path)
    (tmp_path / "faces.csv").write_text("clip,AU01,AU12,AU45\np0/r00,NA,#N/A,3\n")
    (window,) = cut(e, scan(e)[0])
    np.testing.assert_array_equal(window["face"], [[np.nan, np.nan, 3]])


def test_rows_that_cannot_be_used_are_problems_with_their_number(tmp_path: Path) -> None:
    e = load(tmp_path)
    (tmp_path / "faces.csv").write_text("clip,AU01,AU12,AU45\n\np0/r00,1,2,3\np0/r01,1,2\np0/r02,1,2,x\n")
    with pytest.raises(DataError, match=r"column AU45 .* \(could not convert .* 'x'\)"):
        scan(e)
    (tmp_path / "faces.csv").write_text("clip,AU01,AU12,AU45\n\np0/r00,1,2,3\np0/r01,1,2\n")
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    assert [r.id for r in listing.recordings] == ["p0/r00"]
    assert any(p.reason.startswith("row 3 has 3 cells, the header 4") for p in listing.problems)


def test_rows_that_name_no_recording_are_counted(tmp_path: Path) -> None:
    e = load(tmp_path)
    table = pd.read_csv(tmp_path / "faces.csv")
    table.loc[[3, 5], "clip"] = ["p0/r99", ""]
    table.to_csv(tmp_path / "faces.csv", index=False)
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    rows = f"2 of {len(table)} rows name no recording (the first: row 4, 'p0/r99'), and are not used"
    assert listing.remarks == (f"{tmp_path / 'faces.csv'}: {rows}",)


def test_whole_numbers_that_became_floats_name_the_same_recordings(tmp_path: Path) -> None:
    recordings = pd.DataFrame({"subject": [1, 2], "recording": [1, 2], "label": ["a", "b"]})
    features = pd.DataFrame({"subject": [1.0, 2, np.nan], "clip": [1.0, 2, np.nan], "AU01": [5, 6, 7]})
    changes = write_tables(tmp_path) | {"preprocessing.features": {"face": {"columns": ["AU01"]}}}
    recordings.to_csv(tmp_path / "recordings.csv", index=False)
    for name in ("faces.csv", "faces.parquet"):
        features.to_csv(tmp_path / name) if name.endswith("csv") else features.to_parquet(tmp_path / name)
        changes |= {"data.features": {"face": {"path": str(tmp_path / name), "key": "clip"}}}
        found = {r.id: r.features["face"].values for r in scan(load_experiment("fusion", changes))}
        assert found == {"1/1": (5.0,), "2/2": (6.0,)}
