"""Predicted numbers have the names of their targets, in tables and trees."""

import json

import numpy as np
import pandas as pd
import pytest

from eav_ray.evaluation.predicted_numbers import build_number_trees, name_numbers
from eav_ray.evaluation.probabilities import RecordingAverager
from eav_ray.training.metrics import average_per_recording, list_modality_sources
from tests.helpers.number_predictions import MODALITIES, TARGETS, draw_number_predictions


def test_columns_have_the_names_of_targets() -> None:
    windows = draw_number_predictions(2, 2).drop(columns="fold")
    windows.loc[0, "audio.value_0"] = np.nan
    table = name_numbers(windows, TARGETS)
    expected = ["subject", "recording", "window", *TARGETS]
    for source in ("", *(f"{m}." for m in MODALITIES), "mean."):
        expected += [f"{source}predicted.{name}" for name in TARGETS]
    assert sorted(table) == sorted(
        [*expected, *(f"{kind}.{m}" for kind in ("weight", "corrected") for m in MODALITIES)]
    )
    np.testing.assert_array_equal(table["predicted.arousal"], windows["fusion.value_1"])
    np.testing.assert_array_equal(table["valence"], windows["target_0"])
    assert np.isnan(table["audio.predicted.valence"][0])
    assert list_modality_sources(windows) == MODALITIES


def test_a_target_with_the_name_of_another_column_is_told_apart() -> None:
    table = name_numbers(draw_number_predictions(2, 2), ("window", "arousal"))
    assert table["window"].tolist() == [0, 1] * 4 and "true.window" in table and "predicted.window" in table


def test_trees_are_json_and_null_where_there_is_no_number() -> None:
    windows = draw_number_predictions(1, 1)
    windows.loc[1, ["eeg.value_0", "fusion.value_1", "weight.eeg"]] = np.nan
    trees = build_number_trees(windows, TARGETS)
    first, second = json.loads(json.dumps(trees, allow_nan=False))
    assert first["predicted"] == {"valence": windows["fusion.value_0"][0], "arousal": windows["fusion.value_1"][0]}
    assert list(first["by_modality"]) == MODALITIES and list(first["by_modality"]["eeg"]) == list(TARGETS)
    assert second["predicted"]["arousal"] is None and second["by_modality"]["eeg"]["valence"] is None
    assert second["weights"]["eeg"] is None and second["corrected_weights"]["eeg"] is not None


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("unknown", ["none", "some", "all"])
def test_recordings_are_averaged_block_by_block_whether_or_not_targets_are_known(block: int, unknown: str) -> None:
    windows = draw_number_predictions(3, 3).drop(columns="fold")
    if unknown != "none":
        rows = windows["recording"] == "r1" if unknown == "some" else slice(None)
        windows.loc[rows, ["target_0", "target_1"]] = np.nan
    windows.loc[windows["recording"] == "r2", "eeg.value_0"] = np.nan
    averager = RecordingAverager()
    for at in range(0, len(windows), block):
        averager.add(windows.iloc[at : at + block])
    found = averager.compute_means()
    assert averager.n_windows == len(windows) and found["windows"].eq(2).all() and len(found) == 9
    expected = average_per_recording(windows)
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_exact=False)
