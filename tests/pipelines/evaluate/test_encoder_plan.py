"""What a comparison trains is planned, and refused, before anything is trained; the folds are those of the protocol."""

from dataclasses import replace
from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.data.shards.dataset import Dataset
from eav_ray.errors import ConfigError
from eav_ray.pipelines.evaluate.encoder_plan import EncoderPlan, choose_baselines, plan_comparison
from eav_ray.pipelines.train.cross_validation import plan_cv_folds
from eav_ray.pipelines.train.workload import list_run_licence_warnings
from tests.helpers.datasets import make_dataset


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    changes = {"data.modalities": ["audio", "eeg"], "store.results": str(tmp_path / "results"), "runtime.workers": 1}
    return override(Experiment(), changes | {"split.protocol": "loso"})


@pytest.fixture
def data(experiment: Experiment) -> Dataset:
    made = make_dataset(experiment)
    named = replace(made, index=replace(made.index, eeg_channel_names=tuple(f"E{k}" for k in range(30))))
    vars(named)["windows"] = made.windows
    return named


def plan(
    e: Experiment, data: Dataset, encoders: str = "bandpower,mfcc", n_seeds: int = 1, baselines: tuple[str, ...] = ()
) -> EncoderPlan:
    return plan_comparison(e, encoders, n_seeds, baselines, (), data)


def test_every_training_is_that_of_the_protocol_and_there_once(experiment: Experiment, data: Dataset) -> None:
    found = plan(experiment, data, "bandpower,mfcc,eeg:bandpower", 2)
    assert found.modalities == ["audio", "eeg"] and found.seeds == [0, 1]
    assert len(found.protocols) == 6 and len(found.runs) == 2 * 2 * 4  # two names of one encoder are trained once
    for seed in (0, 1):
        alone = override(experiment, {"data.modalities": ["eeg"], "model.eeg.kind": "bandpower", "seed": seed})
        expected = [fold.runs[-1].key for fold in plan_cv_folds(alone, data)]
        (own,) = [p for p in found.protocols if p.variant.name == "bandpower" and p.seed == seed]
        assert [fold.runs[-1].key for fold in own.folds] == expected
    splits = [[fold.split for fold in p.folds] for p in found.list_protocols("eeg")]
    assert all(one == splits[0] for one in splits)  # seeds and encoders have equal folds


def test_the_key_knows_what_is_compared(experiment: Experiment, data: Dataset) -> None:
    def key(*arguments: object, e: Experiment = experiment) -> str:
        return plan(e, data, *arguments).make_key(e, data)  # pyright: ignore

    assert key() == key() and key().startswith("experiment-")
    others = [key("bandpower"), key("bandpower,mfcc", 2), key("mfcc,bandpower"), key("bandpower,mfcc", 1, ("svm",))]
    others.append(key(e=override(experiment, {"split.protocol": "within"})))
    assert len({key(), *others}) == 6


def test_all_that_cannot_be_trained_is_refused_at_once(experiment: Experiment, data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "encoders.yaml"
    path.write_text(
        """
- bandpower
- {name: long, model.eeg: {kind: braindecode, name: EEGConformer, settings: {filter_time_length: 9000}}}
- {name: nowhere, model.eeg: {kind: braindecode, name: NoSuch}}
- {name: slow, model.eeg.kind: bandpower, train.encoders.eeg.lr: -1}
- {name: unfetched, model.audio: {kind: speech, weights: facebook/hubert-base}}
"""
    )
    with pytest.raises(ConfigError) as error:
        plan(experiment, data, str(path))
    lines = str(error.value).splitlines()
    assert [line.split('"')[1] for line in lines] == ["long", "nowhere", "slow", "unfetched"]
    assert "braindecode cannot make EEGConformer of these windows" in lines[0]
    assert "which braindecode does not have" in lines[1] and "train.encoders.eeg.lr is -1" in lines[2]
    assert "was not fetched" in lines[3]
    assert not Path(experiment.store.results).exists()


def test_seeds_of_permuted_labels_are_refused(experiment: Experiment, data: Dataset) -> None:
    with pytest.raises(ConfigError, match="--seeds is 0; give a number"):
        plan(experiment, data, n_seeds=0)
    permuted = override(experiment, {"data.labels": "permuted"})
    with pytest.raises(ConfigError, match="each seed permutes labels in another way"):
        plan(permuted, data, n_seeds=2)
    assert plan(permuted, data).seeds == [0]


def test_baselines_are_those_of_the_modalities(experiment: Experiment, data: Dataset) -> None:
    def names(*kinds: str) -> dict[str, list[str]]:
        found = choose_baselines(experiment, ["audio", "eeg"], kinds)
        return {m: [source.kind for source in sources] for m, sources in found.items()}

    assert names("riemann") == {"eeg": ["riemann"]} and names("none") == {}
    assert names()["audio"] == ["svm", "logistic"]
    with pytest.raises(ConfigError, match="--baselines names nosuch; use any of"):
        names("nosuch")
    assert plan(experiment, data, "mfcc").baselines.keys() == {"audio"}


def test_a_name_of_a_baseline_is_refused(experiment: Experiment, data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "encoders.yaml"
    path.write_text("- {name: SVM on band powers, model.eeg.kind: bandpower}\n- mfcc")
    title = choose_baselines(experiment, ["eeg"], ["svm"])["eeg"][0].title
    path.write_text(f'- {{name: "{title}", model.eeg.kind: bandpower}}')
    with pytest.raises(ConfigError, match="has the name of a baseline"):
        plan(experiment, data, str(path))


def test_terms_of_every_network_are_said(experiment: Experiment, data: Dataset) -> None:
    found = plan(experiment, data, "bandpower,braindecode:BrainModule")
    assert list_run_licence_warnings(found.runs) == [
        "eeg: braindecode BrainModule is licensed cc-by-nc-4.0: not for commercial use"
    ]


def test_electrodes_are_known_when_a_network_is_tried(experiment: Experiment, data: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "encoders.yaml"
    path.write_text("- {name: two, model.eeg: {kind: braindecode, name: EEGNet, channels: [E3, E1]}}")
    assert len(plan(experiment, data, str(path)).runs) == 4
