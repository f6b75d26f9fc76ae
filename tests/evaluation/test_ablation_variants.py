"""A variant changes what it says and nothing else; what it leaves is trained once; what is hidden is as if missing."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eav_ray.config import Experiment, load_experiment, override
from eav_ray.config.model_sections import KIND_PLACES
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.evaluation.ablation_variants import (
    ABLATION_PARTS,
    BASE_VARIANT,
    SIZE_FACTORS,
    AblationVariant,
    build_ablation_variants,
)
from eav_ray.models.classifier import Classifier, ClassifierOutput
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.cost import compute_model_cost, measure_latency_ms
from eav_ray.training.dataloader import Batch, MaskedSource, RawSource, WindowLabels
from eav_ray.training.predictions import compute_predictions
from eav_ray.training.run_spec import plan_fusion_run, plan_runs
from eav_ray.tuning.study import make_study_name
from tests.helpers.classifiers import SMALL, make_batch
from tests.helpers.paths import EXPERIMENTS

SHIPPED = sorted((EXPERIMENTS).glob("*.yaml"))
SPLIT = Split("loso", ("a/1", "a/2"), (), ("b/1",))
ALL = ("handcrafted", *SIZE_FACTORS)


def keys(variant: AblationVariant, base: Experiment) -> dict[str, str]:
    return {run.kind + run.title: run.key for run in plan_runs(variant.apply_to(base), SPLIT, "data")}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_experiment_has_variants_with_names_of_their_own(path: Path) -> None:
    e = load_experiment(path)
    parts = ABLATION_PARTS if len(e.data.modalities) > 1 else ("sizes",)
    found, _ = build_ablation_variants(e, parts, ALL)
    assert len({v.name for v in found}) == len(found) > 1 and found[0] == AblationVariant(BASE_VARIANT, "")
    assert {v.reference for v in found} <= {v.name for v in found}
    for v in found:
        changed = v.apply_to(e)
        assert (changed != e) == bool(v.changes) and (changed.optim, changed.seed) == (e.optim, e.seed)
        assert set(v.list_tested_modalities(e)) <= set(e.data.modalities)


def test_all_subsets_are_both_trained_alone_and_masked() -> None:
    e = Experiment()
    found, left_out = build_ablation_variants(e, ["subsets"], [])
    wanted = {some for n in (1, 2) for some in combinations(("audio", "eeg", "video"), n)}
    for mode in ("retrained", "masked"):
        assert {tuple(v.list_tested_modalities(e)) for v in found[1:] if v.mode == mode} == wanted
    assert not left_out and all(not v.changes for v in found if v.mode == "masked")


def test_variants_share_the_encoders_that_they_do_not_change() -> None:
    e = Experiment()
    found, _ = build_ablation_variants(e, ABLATION_PARTS, ["half"])
    base = keys(found[0], e)
    for v in found[1:]:
        mine = keys(v, e)
        encoders = {k: key for k, key in mine.items() if k.startswith("encoder")}
        if v.size == BASE_VARIANT:
            assert encoders.items() <= base.items(), v.name
        else:
            assert not set(encoders.values()) & set(base.values()), v.name
        if v.visible_modalities and not v.changes:
            assert mine == base
        elif len(mine) > 1:
            assert mine["fusionfusion"] != base["fusionfusion"], v.name


def test_every_kind_of_fusion_is_compared_with_the_one_that_is_given() -> None:
    kinds = {kind for kind, section in KIND_PLACES["fusion"].list_kinds().items() if section.predicts_classes}
    for kind in kinds:
        e = override(override(Experiment(), {"fusion.heads": 4}), {"fusion.kind": kind})
        found, _ = build_ablation_variants(e, ["kinds"], [])
        assert {v.apply_to(e).fusion.kind for v in found} == kinds
    # The heads of single_token must divide all widths together; those of the experiment do not.
    e = override(Experiment(), {"fusion.width": 255, "fusion.heads": 5})
    (linear,) = [v for v in build_ablation_variants(e, ["kinds"], [])[0] if "linear map" in v.name]
    assert linear.apply_to(e).fusion.heads == 4


def test_the_other_way_of_each_switch_is_taken() -> None:
    e = override(Experiment(), {"fusion.modality_dropout": 0.0, "fusion.positions": False})
    found, _ = build_ablation_variants(e, ["dropout", "positions"], [])
    changed = [v.apply_to(e).fusion for v in found[1:]]
    assert [(f.modality_dropout > 0, f.positions) for f in changed] == [(True, False), (False, True)]
    _, left_out = build_ablation_variants(override(e, {"fusion.kind": "product"}), ["dropout", "positions"], [])
    assert "product has nothing to train" in left_out[0] and "product reads no time tokens" in left_out[1]


def test_sizes_are_ordered_by_cost_and_each_also_goes_without_eeg() -> None:
    shapes = DataShapes(30, 5)
    changes = {"search.cost": "parameters", "data.modalities": ["audio", "eeg"], "model.audio.kind": "mfcc"}
    e = load_experiment(SHIPPED[[p.stem for p in SHIPPED].index("demo")], changes)
    found = {v.name: compute_model_cost(v.apply_to(e), shapes) for v in build_ablation_variants(e, ["sizes"], ALL)[0]}
    order = ["quarter", "half", BASE_VARIANT, "double"]
    assert [found[size] for size in order] == sorted(found[size] for size in order)
    assert all(found[f"{size} without eeg"] < found[size] for size in (*order, "handcrafted"))
    assert build_ablation_variants(e, ["sizes"], ["half", "half"]) == build_ablation_variants(e, ["sizes"], ["half"])
    frozen = override(Experiment(), {"train.encoders.video.encoder_lr_scale": 0.0})
    assert "keeps published weights" in build_ablation_variants(frozen, ["sizes"], ALL)[1][0]


@pytest.mark.parametrize(
    ("parts", "sizes", "reported"),
    [
        (["kind"], [], "--parts names 'kind'; use any of subsets,kinds"),
        (["sizes"], ["tiny"], "--sizes names 'tiny'; use any of handcrafted,quarter"),
        (["subsets"], [], "an ablation wants two modalities or more"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(parts: list[str], sizes: list[str], reported: str) -> None:
    e = override(Experiment(), {"data.modalities": ["eeg"]})
    with pytest.raises(ConfigError, match=reported):
        build_ablation_variants(e, parts, sizes)


def test_another_model_is_another_training_and_another_study() -> None:
    e = Experiment()
    without = override(e, {"fusion.positions": False})
    assert plan_fusion_run(e, SPLIT, "data", ()).key != plan_fusion_run(without, SPLIT, "data", ()).key
    assert make_study_name(e, "data", [SPLIT], []) != make_study_name(without, "data", [SPLIT], [])


class Stored(WindowCache):
    """Windows of three recordings of random signals."""

    def __init__(self, e: Experiment, hidden: tuple[str, ...] = ()) -> None:
        self._inputs = make_batch(e, n=6).inputs
        rows = [
            {"id": f"a/{n // 2}", "subject": "a", "recording": str(n // 2), "window": n % 2}
            | {f"has_{m}": m not in hidden and not (m == "audio" and n == 5) for m in self._inputs}
            for n in range(6)
        ]
        self.ids = pd.DataFrame(rows)

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, rows: np.ndarray, column: str) -> np.ndarray:
        return self._inputs[column][rows].numpy()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_modality_that_is_hidden_is_as_if_it_were_missing() -> None:
    e = override(Experiment(), SMALL | {"data.modalities": ["audio", "eeg"]})
    torch.manual_seed(0)
    model = Classifier(e, DataShapes(5, 3)).eval()
    for parameter in model.fusion.parameters() if model.fusion else ():
        torch.nn.init.normal_(parameter, std=0.2)

    def predict(batch: Batch) -> ClassifierOutput:
        with torch.no_grad():
            return model(batch.inputs, batch.present_BM)

    def table(windows: Stored, seen: tuple[str, ...] = ()) -> pd.DataFrame:
        source, labels = RawSource(windows, model.modalities), WindowLabels(np.zeros(6, int), np.arange(6))
        return compute_predictions(
            predict, MaskedSource(source, seen) if seen else source, labels, np.arange(6), windows, 4
        )

    hidden = table(Stored(e), ("eeg",))
    pd.testing.assert_frame_equal(hidden, table(Stored(e, ("audio",))), check_exact=True)
    whole = table(Stored(e))
    changed = hidden["fusion.logit_0"] != whole["fusion.logit_0"]
    assert changed.tolist() == 5 * [True] + [False]  # the last has no audio
    assert (hidden["weight.audio"] == 0).all() and hidden["audio.logit_0"].isna().all()


def test_latency_is_of_single_windows_and_leaves_the_threads_as_they_were() -> None:
    e = override(Experiment(), {"data.modalities": ["eeg"], "model.eeg.kind": "bandpower"})
    before = torch.get_num_threads()
    times = measure_latency_ms(e, DataShapes(30, 5), torch.device("cpu"))
    assert len(times) >= 5 and min(times) > 0 and torch.get_num_threads() == before
