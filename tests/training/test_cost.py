"""What a model costs is counted without being built; it is the cost of the model that is built."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eav_ray.config import Experiment, override
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.cost import (
    compute_model_cost,
    estimate_seconds_per_fused_window,
    estimate_seconds_per_window,
    make_random_batch,
    measure_latency_ms,
)
from tests.helpers.classifiers import SMALL

SHAPES = DataShapes(5, 3)
FUSIONS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "pooled": {"fusion.input": "pooled"},
    "gated": {"fusion.kind": "gated"},
    "single token": {"fusion.kind": "single_token"},
    "bottleneck": {"fusion.kind": "bottleneck", "fusion.input": "pooled"},
    "one modality": {"data.modalities": ["eeg"]},
    "segments of EEG": {"model.eeg": {"kind": "bandpower", "width": 24}},
    "covariances of EEG": {"model.eeg": {"kind": "covariance", "width": 24}},
}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_cost_of_a_candidate_is_that_of_its_model(fusion: str) -> None:
    e = override(override(Experiment(), SMALL), FUSIONS[fusion])
    model = Classifier(e, SHAPES).eval()
    inputs = {m: make_random_batch(e, m, SHAPES, 1).inputs[m] for m in e.data.modalities}
    with FlopCounterMode(display=False) as counter:
        model(inputs, torch.ones(1, len(inputs), dtype=torch.bool))
    counted = counter.get_total_flops() / 2e9
    assert compute_model_cost(override(e, {"search.cost": "gmac"}), SHAPES) == pytest.approx(counted, rel=0.02)
    parameters = sum(p.numel() for p in model.parameters())
    assert compute_model_cost(override(e, {"search.cost": "parameters"}), SHAPES) == parameters
    e = override(e, {"runtime.gpus_per_worker": 0})
    assert (estimate_seconds_per_fused_window(e, SHAPES) > 0) == (fusion != "one modality")


def test_a_model_that_normalises_within_subjects_is_timed_without_any() -> None:
    changes = {"model.eeg.subject_normalisation": "standardise", "split.access": "unlabelled_block"}
    changes |= {"data.modalities": ["eeg"], "model.eeg.kind": "bandpower", "runtime.gpus_per_worker": 0}
    e = override(Experiment(), changes)
    assert estimate_seconds_per_window(e, SHAPES)["eeg"] > 0
    assert min(measure_latency_ms(e, SHAPES, torch.device("cpu"))) > 0
    assert compute_model_cost(override(e, {"search.cost": "parameters"}), SHAPES) > 0
