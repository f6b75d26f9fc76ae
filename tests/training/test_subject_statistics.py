"""Features are normalised within each subject, by the recordings that the access level allows and no others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from eav_ray.config import Experiment, SplitConfig, load_experiment, override
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.shards.index import ShardFile, ShardIndex
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import build_window_table, encode_parquet, encode_window
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split, list_labeled_recordings, make_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.predictor import Predictor
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store, sha256
from eav_ray.training.access import list_split_recordings
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.dataloader import RawSource
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_runs
from eav_ray.training.runner import execute_run
from eav_ray.training.subject_statistics import (
    SubjectMoments,
    normalise_source,
    select_accessible_recordings,
    sum_features,
)
from tests.helpers.given_features import write_tables

NORMALISED = {"model.face.subject_normalisation": "standardise", "split.access": "unlabelled_block"}


def make_windows(e: Experiment, folder: Path) -> WindowCache:
    reader, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    rows = [
        encode_window(window, e.preprocessing)
        for r in listing.recordings
        for window in cut_recording(r, WindowFormat(e.preprocessing, e.data.modalities, 0), None).windows
    ]
    store = Store(folder / "stored")
    data = encode_parquet(build_window_table(rows, make_schema(e.preprocessing, 0, e.data.modalities)))
    store.write("a.parquet", data)
    file = ShardFile("a.parquet", sha256(data), len(rows))
    index = ShardIndex("key", reader.classes, e.data.modalities, 0, (file,), {})
    return WindowCache(store, index, cache=folder / "cache", cache_gb=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faces")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Experiment:
    return load_experiment("fusion", write_tables(folder))


@pytest.fixture(scope="module")
def windows(plain: Experiment, folder: Path) -> WindowCache:
    return make_windows(plain, folder)


def train_fold(e: Experiment, windows: WindowCache, folder: Path) -> tuple[OpenedCheckpoint, Split]:
    split = make_split(list_labeled_recordings(windows.ids, e.data, e.seed), e.split)
    (run,) = plan_runs(e, split, "data")
    results = Store(folder / "results")
    prefix = execute_run(run, WorkerContext(windows, results, torch.device("cpu")), lambda progress: None)
    return OpenedCheckpoint(results, prefix), split


def predict(checkpoint: OpenedCheckpoint, windows: WindowCache, recordings: tuple[str, ...]) -> pd.DataFrame:
    """Predict as `eav predict` does: measure first, then predict."""
    rows = windows.find_rows(recordings)
    ids = windows.ids.iloc[rows]
    batch = {c: ids[c].to_numpy() for c in ("subject", "recording", "window", "label", "has_face")}
    batch |= {"face": windows.get(rows, "face")}
    sums: dict[str, Any] = {}
    for subject, _, part in Predictor(checkpoint, torch.device("cpu")).sum_subject_features(batch):
        sums[subject] = sums[subject] + part if subject in sums else part
    subject_statistics = {"face": SubjectMoments.from_sums(sums)} if sums else {}
    return Predictor(checkpoint, torch.device("cpu"), subject_statistics)(batch)


def test_people_who_differ_more_than_classes_are_told_apart_only_with_their_own_terms(
    plain: Experiment, windows: WindowCache, tmp_path: Path
) -> None:
    scores = {}
    for name, changes in {"source": {}, "block": NORMALISED}.items():
        checkpoint, split = train_fold(override(plain, changes), windows, tmp_path / name)
        table = predict(checkpoint, windows, split.test)
        logits = table[["fusion.logit_0", "fusion.logit_1"]].to_numpy()
        scores[name] = float((logits.argmax(1) == table["label"]).mean())
    assert scores["block"] > 0.9 and scores["source"] < 0.75, scores


def test_statistics_are_those_of_numpy_over_the_subjects_recordings(plain: Experiment, windows: WindowCache) -> None:
    e = override(plain, NORMALISED)
    recordings = tuple(r for r in windows.ids["id"] if not r.endswith("r03"))
    source = normalise_source(RawSource(windows, ["face"]), e, DataShapes(0, 2), windows, lambda: (windows, recordings))
    inputs = source.get(np.arange(len(windows)))
    for subject in windows.ids["subject"].unique():
        own = (windows.ids["subject"] == subject).to_numpy(copy=True)
        x = windows.get(np.flatnonzero(own & windows.ids["id"].isin(recordings).to_numpy()), "face")[:, 0]
        np.testing.assert_allclose(inputs["face.subject_mean"][own], np.tile(x.mean(0), (own.sum(), 1)), rtol=1e-5)
        np.testing.assert_allclose(inputs["face.subject_sd"][own], np.tile(x.std(0), (own.sum(), 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (SplitConfig(access="unlabelled_block"), ["a/1", "a/2", "a/3", "b/1"]),
        (SplitConfig(access="unlabelled_first_n", access_recordings=2), ["a/2", "a/3", "b/1"]),
        (SplitConfig(access="labelled_k", access_recordings=1), ["a/3", "b/1"]),
    ],
)
def test_the_access_level_chooses_recordings_in_the_order_in_which_they_were_made(
    access: SplitConfig, expected: list[str]
) -> None:
    ids = pd.DataFrame({"id": ["a/1", "a/2", "a/3", "a/3", "b/1", "b/2"], "subject": list("aaaabb")})
    ids["order"] = [2, 1, 0, 0, 0, 1]
    known = ("a/1", "a/2", "a/3", "b/1")  # b/2 is not there
    assert sorted(select_accessible_recordings(ids, known, access)) == expected


def test_nothing_may_be_looked_at_where_only_the_source_may() -> None:
    with pytest.raises(DataError, match="split.access=source_only allows no statistics"):
        select_accessible_recordings(pd.DataFrame(), (), SplitConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.access": "source_only"}, "model.face.subject_normalisation=standardise looks at recordings.*declare"),
        ({"split.access": "unlabelled_first_n"}, "access=unlabelled_first_n needs access_recordings of a number"),
        ({"split.access_recordings": 3}, "access=unlabelled_block needs access_recordings of 0; it is 3"),
    ],
)
def test_an_access_level_that_does_not_allow_what_is_done_is_refused(
    changes: dict[str, Any], message: str, plain: Experiment
) -> None:
    with pytest.raises(ConfigError, match=message):
        override(plain, NORMALISED | changes)


@pytest.mark.parametrize("key", ["preprocessing.eeg.align=euclidean", "preprocessing.eeg.kind=official"])
def test_preprocessing_that_looks_at_all_recordings_must_be_declared(key: str) -> None:
    name, _, value = key.partition("=")
    with pytest.raises(ConfigError, match=f"{key} looks at all recordings.*split.access=unlabelled_block"):
        load_experiment("fusion", {name: value})
    load_experiment("fusion", {name: value, "split.access": "unlabelled_block"})
    load_experiment("fusion", {name: value, "data.modalities": ["audio", "video"]})


def test_weights_depend_on_the_recordings_of_training_subjects_and_on_no_others(plain: Experiment) -> None:
    def key(changes: dict[str, Any], change_split: Callable[[Split], Split] = lambda split: split) -> str:
        split = Split("subject_kfold", ("a/1", "a/2"), (), ("b/1",))
        return plan_runs(override(plain, changes), change_split(split), "data")[0].key

    def add_test(split: Split) -> Split:
        return replace(split, test=("b/1", "b/2"))

    def add_own(split: Split) -> Split:
        return replace(split, validation=("a/3",))

    first_n = NORMALISED | {"split.access": "unlabelled_first_n", "split.access_recordings": 2}
    assert key({}) == key({"split.access": "unlabelled_block"}) == key({}, add_own)  # which nothing makes use of
    assert key(NORMALISED) == key(NORMALISED, add_test)
    assert len({key({}), key(NORMALISED), key(first_n), key(NORMALISED, add_own)}) == 4


def test_a_model_that_normalises_says_so_instead_of_predicting_without(plain: Experiment) -> None:
    model = Classifier(override(plain, NORMALISED), DataShapes(0, 2))
    with pytest.raises(DataError, match="normalises face within subjects"):
        model({"face": torch.zeros(2, 1, 3)}, torch.ones(2, 1, dtype=torch.bool))


SMALL_VIT = {"image_size": 32, "patch": 16, "width": 16, "depth": 1, "heads": 2, "frames": 5}


@pytest.mark.parametrize(
    ("modality", "changes"),
    [
        ("eeg", {"model.eeg.kind": "bandpower"}),
        ("eeg", {"model.eeg.kind": "eegformer"}),
        ("eeg", {"model.eeg.kind": "eav_transformer"}),
        ("audio", {"model.audio.kind": "mfcc"}),
        ("audio", {"model.audio.width": 16, "model.audio.depth": 1, "model.audio.heads": 2}),
        ("video", {f"model.video.{key}": value for key, value in SMALL_VIT.items()} | {"preprocessing.video.size": 32}),
    ],
)
def test_the_gain_of_a_subjects_sensors_changes_nothing(modality: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    changes |= {"data.modalities": [modality], f"model.{modality}.subject_normalisation": "standardise"}
    model = Classifier(load_experiment("fusion", changes | {"split.access": "unlabelled_block"}), DataShapes(4, 2))
    encoder: Any = model.eval().encoders[modality]
    x, gain = 20 * torch.randn(6, 4, 500), torch.tensor([0.2, 1.0, 3.0, 7.0])[:, None]
    if modality == "audio":
        x, gain = 0.02 * torch.randn(6, 80_000), torch.tensor(5.0)
    if modality == "video":  # light of another colour
        x, gain = torch.randint(60, (6, 25, 32, 32, 3), dtype=torch.uint8), torch.tensor([1, 2, 4], dtype=torch.uint8)

    def run(x: torch.Tensor) -> torch.Tensor:
        mean, sd = sum_features(encoder, x).compute_moments()
        own = {f"{modality}.subject_mean": mean, f"{modality}.subject_sd": sd}
        inputs = {name: torch.from_numpy(v).float().expand(len(x), -1) for name, v in own.items()}
        return model({modality: x} | inputs, torch.ones(len(x), 1, dtype=torch.bool)).logits_BK

    with torch.no_grad():
        torch.testing.assert_close(run(gain * x), run(x), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(run(x.flip(0)), run(x), atol=1e-3)


def test_features_that_are_not_known_count_as_the_mean_and_mask_a_step() -> None:
    changes = {"data.modalities": ["face"], "preprocessing.features": {"face": {"width": 3, "steps": 2}}}
    model = Classifier(load_experiment("fusion", changes), DataShapes(0, 2)).eval()
    encoder: Any = model.encoders["face"]
    x = torch.randn(16, 2, 3) * 3 + 5
    encoder.fit_statistics([(x, None)])
    torch.testing.assert_close(encoder.standardise.mean, x.flatten(0, 1).mean(0))
    partly, unknown = x[:1].clone(), x[:1].clone()
    partly[0, 1, 2], unknown[0, 1] = float("nan"), float("nan")
    filled = partly.clone()
    filled[0, 1, 2] = encoder.standardise.mean[2]
    present = torch.tensor([True])
    for one, other in zip(encoder(partly, present), encoder(filled, present), strict=True):
        torch.testing.assert_close(one, other)
    assert encoder(unknown, present).mask_BN.tolist() == [[True, False]]
    torch.testing.assert_close(encoder(unknown, present).pooled_BD, encoder(unknown, present).tokens_BND[:, 0])


def test_split_recordings_are_those_of_all_sides() -> None:
    assert list_split_recordings(Split("x", ("b",), ("a",), ("c",)), ("d",)) == ("a", "b", "c", "d")
