"""Numbers in place of classes lie in shards as they were given, and are part of what a shard is; shards of classes are
what they always were."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile

from eav_ray.cli.main import run_command
from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.recordings import GivenFeatures, Listing, Recording
from eav_ray.data.shards import content
from eav_ray.data.shards.content import FileContent
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.shards.index import read_shard
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.data.shards.schema import check_column_types, make_schema
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess.chunks import plan_chunks
from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.preprocess.quality_page import write_quality_page
from eav_ray.pipelines.withdraw.withdraw import withdraw
from tests.helpers.given_targets import TARGETS, list_targets, read_recordings, write_recordings, write_target_tables
from tests.helpers.in_process_preprocessing import MadeChunks, run_in_process


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> MadeChunks:
    monkeypatch.setattr(content, "SETTLED_S", 0.0)
    return run_in_process(monkeypatch)


def load(folder: Path, **changes: Any) -> Experiment:
    return load_experiment("fusion", write_target_tables(folder) | {"preprocessing.recordings_per_shard": 3} | changes)


def test_numbers_go_into_shards_and_windows_as_they_are(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    expected = list_targets(read_recordings(tmp_path))
    index = preprocess(e).index
    assert index.targets == TARGETS and index.classes == () and index.n_outputs == 2
    ids = open_dataset(e).windows.ids
    assert ids["label"].eq(0).all()
    assert {i: (v, a) for i, v, a in zip(ids["id"], ids["target_0"], ids["target_1"], strict=True)} == expected
    table = read_shard(open_shard_store(e), index.shards[0])
    assert {table.schema.field(f"target_{k}").type for k in range(2)} == {pa.float64()}
    items = list_labeled_recordings(ids, e.data, e.seed)
    assert {i.id: i.targets for i in items} == expected
    assert make_split(items, e.split).test


def test_permuted_numbers_stay_together_and_with_their_subject(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    preprocess(e)
    windows = open_dataset(e).windows
    permuted_data = override(e, {"data.labels": "permuted"}).data
    true = list_labeled_recordings(windows.ids, e.data, 0)
    permuted = list_labeled_recordings(windows.ids, permuted_data, 0)
    assert [i.targets for i in true] != [i.targets for i in permuted]
    for subject in {i.subject for i in true}:
        own = [sorted(i.targets for i in items if i.subject == subject) for items in (true, permuted)]
        assert own[0] == own[1]
    # A worker that sees one subject alone permutes alike.
    some = open_dataset(e).open_windows(tuple(i.id for i in true if i.subject == "p2")[3:]).ids
    seen = {i.id: i.targets for i in list_labeled_recordings(some, permuted_data, 0)}
    assert seen == {i.id: i.targets for i in permuted if i.id in seen} and len(seen) == 9


def test_a_corrected_number_makes_its_shard_anew_and_no_other(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    preprocess(e)
    first = list(made)
    preprocess(e)
    assert made == first
    table = read_recordings(tmp_path)
    table.loc[4, "arousal"] = 17.5
    write_recordings(tmp_path, table)
    preprocess(e)
    assert [name.rsplit("-", 1)[0] for name in made[len(first) :]] == ["p0-r03"]
    ids = open_dataset(e).windows.ids.set_index("id")
    assert ids.loc["p0/r04", "target_1"] == 17.5
    # The same shards under other names of the columns: a number is what it is.
    write_recordings(tmp_path, table.rename(columns={"valence": "pleasure"}))
    renamed = override(e, {"data.targets.columns": ["pleasure", "arousal"]})
    assert preprocess(renamed).index.targets == ("pleasure", "arousal") and len(made) == len(first) + 1
    assert open_dataset(renamed).digest == open_dataset(e).digest


def test_shards_of_other_numbers_or_of_classes_are_not_taken(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    preprocess(e)
    one = override(e, {"data.targets.columns": ["arousal"]})
    asked = "run `eav preprocess` with the same experiment first"
    kept = r"data.targets.columns=\[valence, arousal\] of its own tables"
    with pytest.raises(
        DataError, match=rf"hold {kept}, not data.targets.columns=\[arousal\] of its own tables; {asked}"
    ):
        open_dataset(one)
    with pytest.raises(DataError, match=rf"hold {kept}, not classes; {asked}"):
        open_dataset(override(e, {"data.targets.columns": []}))
    elsewhere = override(e, {"data.targets": {"columns": list(TARGETS), "path": str(tmp_path / "ratings.csv")}})
    with pytest.raises(DataError, match=rf"hold {kept}, not .* of {tmp_path}/ratings.csv; {asked}"):
        open_dataset(elsewhere)
    preprocess(one)
    assert open_dataset(one).index.targets == ("arousal",)
    assert open_dataset(e).index.targets == TARGETS


def test_shards_of_classes_are_called_and_laid_out_as_before_there_were_numbers() -> None:
    """The names are those that the version before gave: what was preprocessed then is not preprocessed again."""
    keys = {"data.dataset": "recordings_table", "data.root": "/data/recordings.csv", "store.shards": "/nowhere"}
    keys |= {"data.modalities": ["audio", "face"], "preprocessing.features": {"face": {"columns": ["a", "b"]}}}
    e = override(Experiment(), keys | {"data.features": {"face": {"path": "/data/faces.csv"}}})
    features = {"face": GivenFeatures("/data/faces.csv", (0.5, 1.0))}
    recording = Recording("p1", "r1", 1, "speaking", 0, audio="/data/a.wav", features=features)
    contents = {recording.id: {"audio": (FileContent("/data/a.wav", (3, 1, 1, 1), "ab" * 32),)}}
    (chunk,) = plan_chunks(e, Listing((recording,)), contents)
    assert chunk.name == "p1-r1-bd7c175443"
    assert open_shard_store(e).root == "/nowhere/recordings_table-73d73b8869ce7a1e"
    assert name_index_folder(e) == "datasets/859a0160fd"
    bids = override(e, {"data.dataset": "bids", "data.bids.label": "events.trial_type"})
    assert name_index_folder(bids) == "datasets/9a067a47dd"
    assert make_schema(e.preprocessing, 0, e.data.modalities).names == [
        *("subject", "recording", "window", "label", "task", "order"),
        *("audio", "has_audio", "audio_seconds", "audio_db", "audio_clipped"),
        *("face", "has_face", "face_seconds", "face_missing"),
    ]


def test_shards_that_lack_numbers_of_their_index_are_refused(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    preprocess(e)
    dataset = open_dataset(e)
    with pytest.raises(DataError, match="has no column target_2; preprocess again"):
        len(replace(dataset, index=replace(dataset.index, targets=(*TARGETS, "dominance"))).windows)


def test_numbers_of_another_type_are_no_shard() -> None:
    schema = make_schema(Experiment().preprocessing, 0, ["audio"], 2)
    check_column_types(schema, "a")
    at = schema.get_field_index("target_1")
    with pytest.raises(DataError, match="shard a holds target_1 as float, which no shard does"):
        check_column_types(schema.set(at, pa.field("target_1", pa.float32())), "a")


def test_check_and_the_quality_page_show_numbers_in_place_of_classes(
    tmp_path: Path, made: MadeChunks, capsys: pytest.CaptureFixture[str]
) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    shown = format_dataset_check(check_dataset(e)).splitlines()
    head = re.split(r"  +", shown[0])
    measures = [measure for name in TARGETS for measure in (f"{name} mean", "SD", "min", "max")]
    assert head[:10] == ["subject", "recordings", *measures]
    assert head[-1] == "face" and [line.split()[0] for line in shown[1:8]] == [*(f"p{s}" for s in range(6)), "all"]
    for line in shown[1:8]:
        subject, count, *cells = line.split()
        own = table if subject == "all" else table[table["subject"] == subject]
        expected = [[x.mean(), x.std(ddof=0), x.min(), x.max()] for x in (own[name] for name in TARGETS)]
        np.testing.assert_allclose(np.array(cells[:8], float), np.ravel(expected), rtol=1e-3)
        assert int(count) == int(cells[-1]) == len(own)
    assert "6 subjects, 72 recordings, 0 problems" in shown

    terminal, path = write_quality_page(e, preprocess(e), frames=False)
    assert "valence mean" in terminal and "arousal mean" in terminal
    page = Path(path).read_text()
    assert "Numbers to be predicted" in page and "Recordings per class" not in page
    assert "valence mean" in page
    low, high = table["valence"].min(), table["valence"].max()
    assert f"valence is {table['valence'].median():.4g} in the median recording, from {low:.4g} to {high:.4g}" in page
    assert run_command(["check", *list_words(e)]) == 0
    assert "arousal mean" in capsys.readouterr().out


def list_words(e: Experiment) -> list[str]:
    return [
        "fusion",
        "data.dataset=recordings_table",
        f"data.root={e.data.root}",
        "data.modalities=[face]",
        "data.targets.columns=[valence, arousal]",
        "data.features={face: {path: " + e.data.features["face"].path + ", key: clip}}",
        "preprocessing.features={face: {columns: [AU01, AU12, AU45]}}",
    ]


def test_one_signal_under_two_numbers_is_said_as_under_two_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = np.repeat(rng.uniform(0.02, 1, 50), 1600) * 0.1 * rng.standard_normal(80_000)
    for name, gain in (("a", 1.0), ("b", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", gain * sound, 16_000)
    soundfile.write(tmp_path / "c.wav", rng.normal(0, 0.1, 80_000), 16_000)
    rows = [("r1", "a.wav", 3.5), ("r2", "a.wav", 4), ("r3", "b.wav", 3.5), ("r4", "c.wav", 3.5)]
    table = pd.DataFrame(rows, columns=["recording", "audio", "score"]).assign(subject="p")
    table.to_csv(tmp_path / "m.csv", index=False)
    keys = {"data.dataset": "recordings_table", "data.root": str(tmp_path / "m.csv"), "data.modalities": ["audio"]}
    e = override(Experiment(), keys | {"data.targets.columns": ["score"]})
    notes = check_dataset(e, deep=True).notes
    way_out = "keep one of these rows and drop the others, or correct which file each names"
    assert notes[0] == (
        "duplicates: p/r1 (score 3.5), p/r2 (score 4) have one signal of audio (one file, a.wav); their targets "
        f"differ; {way_out}"
    )
    assert any(
        re.match(r"near-duplicates: p/r2 \(score 4\) and p/r3 \(score 3.5\) have .*; their targets differ; ", note)
        for note in notes
    )
    assert any(re.match(r"near-duplicates: p/r1 .score 3.5. and p/r3 [^;]*; keep one", note) for note in notes)


def test_a_withdrawn_subject_takes_its_numbers_along(tmp_path: Path, made: MadeChunks) -> None:
    e = load(tmp_path)
    table = read_recordings(tmp_path)
    table.loc[table["subject"] == "p3", "valence"] = 12345.678
    write_recordings(tmp_path, table)
    write_quality_page(e, preprocess(e), frames=False)
    assert any(b"12345.678" in path.read_bytes() for path in (tmp_path / "shards").rglob("*.json"))
    withdraw(e, "p3")
    left = [p for p in (tmp_path / "shards").rglob("*") if p.is_file()]
    assert left and not any(b"12345.678" in path.read_bytes() for path in left)
    assert set(open_dataset(e).windows.ids["subject"]) == {f"p{s}" for s in range(6)} - {"p3"}
