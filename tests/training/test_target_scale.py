"""Models are trained on standardised numbers, and predict in the units of the targets."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from eav_ray.errors import DataError
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.dataloader import Batch
from eav_ray.training.losses import compute_loss_sum, compute_losses, mixup
from eav_ray.training.metrics import average_per_recording
from eav_ray.training.predictions import build_predictions
from eav_ray.training.target_scale import TargetScale, fit_target_scale

VALUES = np.random.default_rng(0).normal([4.0, -100.0], [2.0, 30.0], (40, 2))


def test_numbers_come_back_as_they_were() -> None:
    scale = fit_target_scale(("valence", "arousal"), VALUES)
    standardised = scale.standardise(VALUES)
    assert standardised.dtype == np.float32
    np.testing.assert_allclose(standardised.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standardised.std(0), 1, atol=1e-6)
    np.testing.assert_allclose(scale.restore(standardised), VALUES, rtol=1e-5)


def test_a_target_that_is_the_same_for_all_is_refused() -> None:
    constant = VALUES.copy()
    constant[:, 1] = 7
    with pytest.raises(DataError, match="same arousal, 7.*take it out of data.targets.columns"):
        fit_target_scale(("valence", "arousal"), constant)


def make_batch() -> Batch:
    target = torch.from_numpy(fit_target_scale(("valence", "arousal"), VALUES).standardise(VALUES))
    weight = torch.ones(40)
    weight[-5:] = 0
    inputs = {"audio": torch.randn(40, 3)}
    return Batch(inputs, torch.ones(40, 1, dtype=torch.bool), target, weight, 35, 1)


def test_the_loss_is_the_mean_squared_error_of_rows_that_count() -> None:
    batch, outputs = make_batch(), torch.randn(40, 2)
    outputs[-1] = torch.nan  # a row that only fills the batch up
    expected = torch.nn.functional.mse_loss(outputs[:35], batch.label_B[:35]) * 35
    assert compute_loss_sum(outputs, batch, 0.1) == pytest.approx(float(expected), rel=1e-5)
    assert compute_losses(torch.zeros(3, 2), torch.zeros(3, 2)).tolist() == [0, 0, 0]


def test_mixed_windows_are_drawn_to_mixed_targets() -> None:
    """The gradient of the mixed loss is that of the loss against the mixed numbers."""
    batch = mixup(replace(make_batch(), weight_B=torch.ones(40), global_count=40), 0.4, 0)
    assert batch.mixup_targets is not None
    other, _, share = batch.mixup_targets
    outputs = torch.randn(40, 2, requires_grad=True)
    (found,) = torch.autograd.grad(compute_loss_sum(outputs, batch, 0.0), outputs)
    mixed = share[:, None] * batch.label_B + (1 - share[:, None]) * other
    (expected,) = torch.autograd.grad((outputs - mixed).square().mean(-1).sum(), outputs)
    torch.testing.assert_close(found, expected)


def test_predictions_are_in_the_units_of_the_targets() -> None:
    scale = TargetScale(("valence", "arousal"), (5.0, 100.0), (2.0, 10.0))
    ids = pd.DataFrame({"subject": "p1", "recording": ["a", "a", "b"], "window": [0, 1, 0]})
    audio, video = torch.tensor([[1.0, 0], [3, 0], [0, 0]]), torch.tensor([[-1.0, 2], [9, 9], [1, 1]])
    present = np.array([[True, True], [True, False], [True, True]])
    output = ClassifierOutput(
        torch.tensor([[0.0, 1], [1, 1], [2, 2]]), {"audio": audio, "video": video}, *(torch.full((3, 2), 0.5),) * 2
    )
    target = np.array([[5.0, 90], [5, 90], [np.nan, np.nan]])
    table = build_predictions(output, ids, present, ["audio", "video"], target, scale)
    assert table["fusion.value_0"].tolist() == [5, 7, 9] and table["fusion.value_1"].tolist() == [110, 110, 120]
    assert table["audio.value_0"].tolist() == [7, 11, 5]
    assert np.isnan(table.loc[1, "video.value_0"]) and table["video.value_0"].tolist()[::2] == [3, 7]
    assert table["mean.value_0"].tolist() == [5, 11, 6] and table["mean.value_1"].tolist() == [110, 100, 105]
    recordings = average_per_recording(table)
    assert recordings["recording"].tolist() == ["a", "b"]  # also where nobody knows the truth
    assert recordings["mean.value_0"].tolist() == [8, 6] and recordings["video.value_0"].tolist() == [3, 7]
    assert "label" not in table and not [c for c in table if "logit" in c]
