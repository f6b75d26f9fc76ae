"""Baselines of a comparison are of one modality each, on its own folds, of the shards that hold all of them."""

from pathlib import Path

import pandas as pd

from eav_ray.config import load_experiment
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.evaluation.encoder_comparison import (
    ENCODER,
    ModelPredictions,
    compare_models,
    measure_spreads,
    score_models,
)
from eav_ray.pipelines.evaluate.compare import predict_baselines
from eav_ray.pipelines.evaluate.encoder_plan import plan_comparison
from tests.helpers.in_process_shards import write_shards
from tests.helpers.rated_features import N_SUBJECTS, TARGETS, write_rated_tables


def test_baselines_of_numbers_are_rows_beside_the_encoders_of_their_modality(tmp_path: Path) -> None:
    e = load_experiment("fusion", write_rated_tables(tmp_path))
    write_shards(e)
    data = open_dataset(e)
    plan = plan_comparison(e, "face,voice", 1, ("ridge",), (), data)
    found = predict_baselines(e, plan, data)
    assert {m: [p.source for p in own] for m, own in found.items()} == {
        m: ["constant", f"ridge.{m}"] for m in ("face", "voice")
    }
    (protocol,) = plan.list_protocols("face")
    constant, ridge = found["face"]
    tested = {(fold.number, i) for fold in protocol.folds for i in fold.split.test}
    names = ridge.windows["subject"] + "/" + ridge.windows["recording"]
    assert set(zip(ridge.windows["fold"], names, strict=True)) == tested

    # As if an encoder had said the same as the ridge regression.
    encoded = ridge.windows.rename(columns=lambda c: c.replace("ridge.face", "fusion"))
    models = [ModelPredictions("face", ENCODER, "fusion", encoded, 0), constant, ridge]
    scores = score_models(models, "face", TARGETS)
    rows = compare_models(scores, {m.model: m.kind for m in models}, "face", measure_spreads(encoded, TARGETS))
    table = pd.DataFrame(rows).set_index(["target", "model"])
    assert set(table["measure"]) == {"ccc"} and set(table["n_subjects"]) == {N_SUBJECTS}
    assert table.loc[("valence", "face"), "mean"] == table.loc[("valence", ridge.model), "mean"] > 0.9
    assert table.loc[("valence", constant.model), "mean"] == 0
    assert table.loc[("valence", ridge.model), "comparison"]["difference"] == 0
    assert table.loc[("valence", constant.model), "comparison"]["difference"] < -0.9
