"""Test results as a person reads them."""

from dataclasses import dataclass

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.split import ACROSS, Split
from eav_ray.report.table import Comparison, compare, correct_per_recording, render, sources_of, warnings_of
from eav_ray.runtime.predict import evaluate, open_checkpoint
from eav_ray.runtime.train import open_data
from eav_ray.runtime.transfer import is_own, transfer


@dataclass(frozen=True)
class Tested:
    correct: pd.DataFrame  # one row a recording, one column a source
    comparison: Comparison | None  # None where there is one modality only
    text: str


def evaluate_checkpoint(experiment: Experiment, path: str, *, bayes: dict[str, float] | None = None) -> Tested:
    data = open_data(experiment)
    if not is_own(experiment, open_checkpoint(path), data.index):
        found = transfer(experiment, path)
        return Tested(found.correct, found.comparison, found.text)
    table = evaluate(experiment, path, data.shards, data.index, data.windows.ids)
    checkpoint = open_checkpoint(path)
    names: list[str] = sorted(checkpoint.experiment.data.modalities)
    sources = sources_of(names)
    correct = correct_per_recording(table, sources)
    people = correct["subject"].nunique()
    lines = [
        f"accuracy in percent, {len(correct)} recordings of {people} people {apart(checkpoint.split)}",
        render(correct, sources, len(data.index.classes), bayes or {}),
    ]
    comparison = None
    if len(names) > 1:
        comparison = compare(correct, names)
        lines.append(str(comparison))
        lines += warnings_of(checkpoint.metrics)
    return Tested(correct, comparison, "\n".join(lines))


def apart(tested: Split) -> str:
    """What sets the recordings that are scored apart from those that were trained on."""
    if tested.protocol in ACROSS:
        return "that were never trained on or chosen by"
    if tested.protocol == "calibrated":
        return f"after calibration with {len(tested.train)} others of theirs"
    return "of whom other recordings were trained on"
