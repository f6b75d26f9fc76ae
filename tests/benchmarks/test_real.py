"""What the comparison on real people scores, and what is left of a fusion without its attention term."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from benchmarks.real import remove_attention_term, score_subjects
from eav_ray.config import Experiment, override
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes

N_CLASSES = 3


def make_predictions() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ids = [(s, f"r{r}", w) for s in "abc" for r in range(7) for w in range(2)]
    table = pd.DataFrame(ids, columns=["subject", "recording", "window"])
    table["label"] = [int(name[1:]) % N_CLASSES for name in table["recording"]]
    for source in ("fusion", "audio"):
        table[[f"{source}.logit_{k}" for k in range(N_CLASSES)]] = rng.standard_normal((len(table), N_CLASSES))
    return table


@pytest.mark.parametrize("unit", ["window", "recording"])
def test_scores_are_the_balanced_accuracy_of_each_person(unit: str) -> None:
    table = make_predictions()
    found = score_subjects(table, {"fusion": "both", "audio": "speech"}, unit).set_index(["model", "subject"])
    columns = [f"audio.logit_{k}" for k in range(N_CLASSES)]
    units = table.groupby(["subject", "recording"])[["label", *columns]].mean() if unit == "recording" else table
    for subject in "abc":
        own = units.query("subject == @subject")
        expected = balanced_accuracy_score(own["label"], own[columns].to_numpy().argmax(1))
        assert found.loc[("speech", subject), "accuracy"] == pytest.approx(expected)
    assert len(found) == 6 and not np.allclose(found.loc["both", "accuracy"], found.loc["speech", "accuracy"])


def test_without_its_attention_term_a_fusion_is_the_weighed_sum_of_what_the_modalities_say() -> None:
    torch.manual_seed(0)
    changes = {"data.modalities": ["audio", "eeg"], "model.audio.kind": "mfcc", "model.eeg.kind": "bandpower"}
    model = Classifier(override(Experiment(), changes | {"fusion.width": 32, "fusion.heads": 4}), DataShapes(4, 3))
    inputs = {"audio": 0.1 * torch.randn(5, 80_000), "eeg": torch.randn(5, 4, 500)}
    present = torch.ones(5, 2, dtype=torch.bool)
    model.eval()
    with torch.no_grad():
        before = model(inputs, present)
        remove_attention_term(model)
        after = model(inputs, present)
        log_p = torch.stack([after.unimodal_logits[m].log_softmax(-1) for m in ("audio", "eeg")], 1)
    torch.testing.assert_close(after.logits_BK, 2 * (log_p * after.corrected_BM[..., None]).sum(1))
    torch.testing.assert_close(after.corrected_BM, before.corrected_BM)
    assert not torch.equal(after.logits_BK, before.logits_BK)
