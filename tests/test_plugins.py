"""A kind from outside the package, one module each, does all that one of the package does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eav_ray.config import (
    Experiment,
    build_experiment,
    load_experiment,
    override,
    parse_changes,
    to_dict,
)
from eav_ray.config.keys import format_keys
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.shards.index import ShardFile, ShardIndex, read_index, write_index
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.shards.writer import ShardWriter
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.errors import ConfigError
from eav_ray.evaluation.predictor import Predictor
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store, list_package_versions
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_runs
from eav_ray.training.runner import execute_run
from eav_ray.tuning.batched_fusion import unbatchable_reason
from tests.helpers.paths import REPOSITORY, TINY
from tests.helpers.toy_dataset import CHANNELS, ToyDataset, write_recordings
from tests.helpers.toy_encoder import ToyEncoder
from tests.helpers.toy_fusion import ToyFusion

PLUGINS = ["tests.helpers.toy_dataset", "tests.helpers.toy_encoder", "tests.helpers.toy_fusion"]
CHANGES: dict[str, Any] = {
    "plugins": PLUGINS,
    "data.dataset": "toy_dataset",
    "data.modalities": ["eeg"],
    "preprocessing.window_s": 1,
    "model.eeg": {"kind": "toy_encoder", "width": 6},
    "train.encoders.eeg.epochs": 20,
    "train.encoders.eeg.lr": 0.03,
    "runtime.engine": "torch",
    "runtime.workers": 1,
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("toy")
    write_recordings(folder / "recordings")
    paths = {f"store.{name}": str(folder / name) for name in ("shards", "results", "cache")}
    return load_experiment(TINY, CHANGES | paths | {"data.root": str(folder / "recordings")})


@pytest.fixture(scope="module")
def windows(experiment: Experiment) -> Iterator[WindowCache]:
    """Windows of all recordings, made as preprocessing makes them."""
    e, store = experiment, Store(experiment.store.shards)
    reader, listing = registry.scan_dataset(e.data)
    assert isinstance(reader, ToyDataset) and not listing.problems
    schema = make_schema(e.preprocessing, len(CHANNELS), e.data.modalities)
    with ShardWriter(store, "shards/a.parquet", schema) as shard:
        for recording, prepared in prepare_eeg(reader, listing.recordings, e.preprocessing.eeg):
            cut = cut_recording(recording, WindowFormat(e.preprocessing, e.data.modalities, len(CHANNELS)), prepared)
            assert not cut.problems
            shard.add([encode_window(window, e.preprocessing) for window in cut.windows])
    file = ShardFile(shard.name, shard.sha256, shard.rows, "")
    versions = list_package_versions()
    write_index(store, ShardIndex("toy", reader.classes, ("eeg",), len(CHANNELS), (file,), versions, CHANNELS))
    names = tuple(r.id for r in listing.recordings)
    yield WindowCache(store, read_index(store), cache=e.store.cache, cache_gb=1, allowed_recordings=names)


@pytest.fixture(scope="module")
def trained(experiment: Experiment, windows: WindowCache) -> Checkpoint:
    e = experiment
    split = make_split(list_labeled_recordings(windows.ids, e.data, e.seed), e.split)
    (run,) = plan_runs(e, split, "toy")
    context = WorkerContext(windows, Store(e.store.results), torch.device("cpu"))
    return ckpt.OpenedCheckpoint(context.results, execute_run(run, context, lambda progress: None)).load()


def test_it_is_trained_and_predicts_subjects_that_it_never_saw(trained: Checkpoint, windows: WindowCache) -> None:
    assert isinstance(ckpt.build_trained_model(trained).encoders["eeg"], ToyEncoder)
    ids = windows.ids
    rows = np.flatnonzero(np.isin(ids["subject"] + "/" + ids["recording"], trained.split.test))
    batch = {c: ids[c].to_numpy()[rows] for c in ("subject", "recording", "window", "label")}
    batch |= {"eeg": windows.get(rows, "eeg"), "has_eeg": np.ones(len(rows), bool)}
    table = Predictor(trained, torch.device("cpu"))(batch)
    logits = table[[f"fusion.logit_{k}" for k in range(2)]].to_numpy()
    assert len(rows) >= 12 and (logits.argmax(1) == batch["label"]).mean() > 0.9


def test_its_fusion_fuses_and_is_trained_alone() -> None:
    changes = {"plugins": PLUGINS, "model.eeg.kind": "toy_encoder", "fusion.kind": "toy_fusion", "fusion.scale": 2.0}
    e = override(Experiment(), changes | {"data.modalities": ["audio", "eeg"], "model.audio.kind": "mfcc"})
    model = Classifier(e, DataShapes(4, 3))
    assert isinstance(model.fusion, ToyFusion) and model.fusion.scale == 2
    inputs = {"audio": torch.randn(2, 80_000), "eeg": torch.randn(2, 4, 500)}
    assert model(inputs, torch.tensor([[True, True], [True, False]])).logits_BK.shape == (2, 3)
    runs = plan_runs(e, make_toy_split(), "data")
    assert unbatchable_reason(runs[-1]) == "fusion.kind=toy_fusion is trained alone"


def make_toy_split() -> Any:
    from eav_ray.data.splits import Split

    return Split("within", ("subject1/a",), ("subject1/b",), ("subject1/c",))


def test_help_lists_its_keys_and_errors_its_name() -> None:
    text = format_keys()
    assert "With model.eeg.kind=toy_encoder instead:" in text and "With fusion.kind=toy_fusion instead:" in text
    assert "fusion.scale = 1 " in text and "| toy_dataset" in text
    with pytest.raises(ConfigError, match=r"model\.eeg\.kind is 'toy'; use one of .*, toy_encoder"):
        override(Experiment(), {"model.eeg.kind": "toy"})
    with pytest.raises(ConfigError, match=r"data\.dataset is 'toy_datset'; use one of .*toy_dataset; did you mean"):
        override(Experiment(), {"data.dataset": "toy_datset"})
    with pytest.raises(ConfigError, match=r'"model\.eeg\.heads" is not a key of model\.eeg\.kind=toy_encoder, but of'):
        override(Experiment(), {"model.eeg.kind": "toy_encoder", "model.eeg.heads": 2})


# In processes of their own, where nothing is imported yet


def run_python(code: str, *words: str, path: Path | None = None) -> str:
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(
        command, cwd=path or REPOSITORY, env={"PYTHONPATH": f"{path}:{REPOSITORY}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_another_process_knows_the_kinds_of_an_experiment_or_of_its_section_that_it_receives(
    experiment: Experiment, tmp_path: Path
) -> None:
    import pickle

    (tmp_path / "experiment").write_bytes(pickle.dumps(experiment))
    (tmp_path / "data").write_bytes(pickle.dumps(experiment.data))
    code = "import pickle, sys; from eav_ray.config import override; "
    whole = code + "e = pickle.loads(open(sys.argv[1], 'rb').read()); print(override(e, {'fusion.kind': 'toy_fusion'}))"
    assert "toy_fusion" in run_python(whole, str(tmp_path / "experiment"))
    section = code + (
        "d = pickle.loads(open(sys.argv[1], 'rb').read()); "
        "from eav_ray.data.datasets.registry import open_reader; print(type(open_reader(d)).__name__)"
    )
    assert run_python(section, str(tmp_path / "data")).strip() == "ToyDataset"


def test_reading_an_experiment_from_a_store_imports_nothing_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text("open('executed', 'w').close()")
    tree = to_dict(Experiment()) | {"plugins": ["hostile"]}
    with pytest.raises(ConfigError, match=r"^best: plugins: hostile is not imported.*give plugins=\[hostile\]"):
        build_experiment(tree, source="best")
    code = (
        "import json, sys; from eav_ray.config import build_experiment; from eav_ray.errors import ConfigError\n"
        "try: build_experiment(json.loads(sys.argv[1]), source='best')\n"
        "except ConfigError as error: print(error)"
    )
    import json

    assert "hostile is not imported" in run_python(code, json.dumps(tree), path=tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("how", ["words", "file"])
def test_a_plugin_that_the_user_names_is_imported(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"mine_{how}.py").write_text("imported = True")
    if how == "words":
        assert parse_changes([f"plugins=[mine_{how}]"]) == {"plugins": [f"mine_{how}"]}
    else:
        (tmp_path / "e.yaml").write_text(f"plugins: [mine_{how}]")
        assert load_experiment(tmp_path / "e.yaml").plugins == (f"mine_{how}",)
    assert sys.modules[f"mine_{how}"].imported
    with pytest.raises(ConfigError, match=r"plugins: no_such_module cannot be imported .*PYTHONPATH"):
        parse_changes(["plugins=[no_such_module]"])


def test_an_installed_package_may_name_a_plugin(tmp_path: Path) -> None:
    """By the metadata that installing it leaves."""
    (tmp_path / "installed_kind.py").write_text(Path(REPOSITORY / "tests/helpers/toy_fusion.py").read_text())
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eav_ray.plugins]\nmine = installed_kind\n")
    code = "from eav_ray.config import *; print(override(Experiment(), {'fusion.kind': 'toy_fusion'}).fusion)"
    assert "ToyFusionConfig" in run_python(code, path=tmp_path)
    with pytest.raises(
        AssertionError,
        match="use one of bottleneck, gated, mean, mean_probability, product, shared_attention, single_token",
    ):
        run_python(code)


def test_two_kinds_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "again.py").write_text(Path(REPOSITORY / "tests/helpers/toy_dataset.py").read_text())
    code = (
        "import again, tests.helpers.toy_dataset; from eav_ray.config import *\n"
        "from eav_ray.errors import ConfigError\n"
        "try: override(Experiment(), {'data.dataset': 'toy_dataset'})\n"
        "except ConfigError as error: print(error)"
    )
    assert "both define the kind toy_dataset; rename one of them" in run_python(code, path=tmp_path)
