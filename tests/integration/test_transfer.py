"""A model that was trained on one speech set is tested on another, in its own layout, over the classes of both."""

import re
from pathlib import Path

import pandas as pd
import pytest

from eav_ray.data.datasets.cremad import CREMAD
from eav_ray.data.datasets.ravdess import RAVDESS
from tests.helpers.clusters import ONE_WORKER, Job
from tests.helpers.speech import CREMAD_CODES, write_cremad, write_ravdess

pytestmark = pytest.mark.ray
CHANGES = ["model.audio.kind=mfcc", "train.encoders.audio.lr=2e-3", "train.encoders.audio.epochs=10", "split.n_folds=3"]
CHANGES += ["train.encoders.audio.batch=16", *ONE_WORKER]


def test_a_generated_class_is_found_in_another_set(job: Job, tmp_path: Path) -> None:
    write_ravdess(tmp_path / "ravdess", actors=6, repetitions=3)
    write_cremad(tmp_path / "cremad", actors=4, sentences=("DFA", "IEO", "TIE"))
    words = [*CHANGES, *(f"store.{name}={tmp_path / name}" for name in ("shards", "results", "cache"))]
    one, other = ([name, f"data.root={tmp_path / name}", *words] for name in ("ravdess", "cremad"))
    for each in (one, other):
        assert "\n0 recordings or files set aside" in job("preprocess", *each).stdout
    path = job("train", *one).stdout.rsplit("checkpoint: ", 1)[1].split()[0]
    printed = job("evaluate", *other, "--checkpoint", path).stdout
    reported = printed[printed.index("trained on") :]
    assert reported.splitlines()[:2] == [
        "trained on ravdess, tested on cremad, 4 shared classes: Neutral, Sadness, Anger, Happiness",
        "not shared: Calmness (ravdess)",
    ]
    assert "48 recordings of 4 people of the other data set" in reported
    assert re.search(r"^chance +25\.00$", reported, re.MULTILINE)
    # The sound of each class is generated: who maps them right is right far more often than 1 in 4. The sets number
    # them differently: who maps them by number is not.
    assert not any(one == other for one, other in zip(RAVDESS.classes, CREMAD.classes, strict=False))
    balanced = re.search(r"balanced accuracy of recordings: audio ([\d.]+); chance 25\.00", reported)
    assert balanced is not None and float(balanced[1]) > 60
    (kept,) = (tmp_path / "results" / "evaluations").iterdir()
    windows = pd.read_parquet(kept)
    emotion_of = {code: emotion for emotion, code in CREMAD_CODES.items()}
    assert [emotion_of[r.split("_")[1]] for r in windows["recording"]] == [CREMAD.classes[k] for k in windows["label"]]
