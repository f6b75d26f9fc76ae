"""A model that was trained on one speech set is tested on another, in its own layout, over the classes of both."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from eav_ray.data.datasets.cremad import CREMAD
from eav_ray.data.datasets.ravdess import RAVDESS
from tests.helpers.speech import CREMAD_CODES, write_cremad, write_ravdess

pytestmark = pytest.mark.ray
CHANGES = ["model.audio.kind=mfcc", "train.encoders.audio.lr=2e-3", "train.encoders.audio.epochs=10", "split.n_folds=3"]
CHANGES += ["train.encoders.audio.batch=16", "runtime.engine=torch", "runtime.workers=1"]

# Four jobs on one Ray: starting it is most of what each of them costs here. The last one is a user's command.
JOBS = """
import sys
from eav_ray.cli.main import run_command
from eav_ray.config import load_experiment, parse_changes
from eav_ray.distributed import cluster
from eav_ray.pipelines.preparation import prepare_experiment
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.train.train import train

words = sys.argv[1:]
one, other = (
    prepare_experiment(load_experiment(name, parse_changes([f"data.root={name}", *words])))
    for name in ("ravdess", "cremad")
)
with cluster.connect_to_ray(one.runtime):
    for experiment in (one, other):
        assert preprocess(experiment).problems == ()
    path = train(one).path
    code = run_command(["evaluate", "cremad", "data.root=cremad", *words, "--checkpoint", path])
sys.exit(code)
"""


def test_a_generated_class_is_found_in_another_set(tmp_path: Path) -> None:
    write_ravdess(tmp_path / "ravdess", actors=6, repetitions=3)
    write_cremad(tmp_path / "cremad", actors=4, sentences=("DFA", "IEO", "TIE"))
    done = subprocess.run(
        [sys.executable, "-c", JOBS, *CHANGES],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reported = done.stdout[done.stdout.index("trained on") :]
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
