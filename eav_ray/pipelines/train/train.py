"""One outer fold: each encoder alone, then the fusion on all of them; or all together."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import Split, count_folds, list_labeled_recordings, make_split
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.pipelines.inference.checkpoint_names import record_latest, shorten_key
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.reporting.tables import format_collapse_warnings
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.run_spec import Run, plan_runs
from eav_ray.training.runner import find_finished_runs
from eav_ray.words import format_recordings


@dataclass(frozen=True)
class TrainResult:
    """What a training ended with.

    Attributes:
        path: Of the finished checkpoint.
        short_name: By which commands find it in the results store.
        text: Its scores, what was not tested, and what does not look right, a line each.
    """

    path: str
    short_name: str
    text: str


def train(experiment: Experiment) -> TrainResult:
    """Train one fold, or continue it."""
    data = open_dataset(experiment)
    items = list_labeled_recordings(data.windows.ids, experiment.data, experiment.seed)
    split = make_split(items, experiment.split)
    runs = plan_runs(experiment, split, data.digest)
    results = Store(experiment.store.results)
    checkpoint = train_unfinished(experiment, runs, data, title="train")
    record_latest(results, "runs", runs[-1].key)
    fold = f"fold {experiment.split.index} of {count_folds(items, experiment.split)}"
    lines = [
        f"trained: {runs[-1].title}, {fold} of {split.protocol}",
        *format_training_scores(checkpoint.metrics, split, len(data.index.classes)),
        *format_collapse_warnings(checkpoint.metrics),
    ]
    return TrainResult(checkpoint.path, shorten_key(runs[-1].key), "\n".join(lines))


def train_unfinished(experiment: Experiment, runs: Sequence[Run], data: Dataset, *, title: str) -> OpenedCheckpoint:
    """Announce and train what is not finished of some runs, and open the checkpoint of the last.

    Args:
        title: Of the line that says how far they are.
    """
    results = Store(experiment.store.results)
    with contextlib.ExitStack() as stack:
        if len(find_finished_runs(runs, results)) < len(runs):  # otherwise no Ray is started, to do nothing
            experiment = stack.enter_context(connect_experiment(experiment))
        announce_workload(experiment, list(runs), data)
        done = train_all_runs(experiment, list(runs), data, title=title)
    return OpenedCheckpoint(results, done[runs[-1].key])


def format_training_scores(metrics: dict[str, Any], split: Split, n_classes: int) -> list[str]:
    """Format the scores of a finished training, and what was not scored: a line for each side of the split.

    Args:
        metrics: As its checkpoint holds them.
        n_classes: 0 where numbers are predicted.
    """
    validation = f"none, as {split.protocol} holds nothing out for it"
    if split.validation:
        validation = f"{_format_scores(metrics, 'validation')}, {_describe_side(split.validation)}"
    chance = f"; chance is {100 / n_classes:.1f} %" if n_classes else ""
    return [
        f"training:   {_format_scores(metrics, 'training')}, recordings that it was trained on{chance}",
        f"validation: {validation}",
        f"test:       {_describe_side(split.test)}, not looked at",
    ]


def _describe_side(recordings: Sequence[str]) -> str:
    n_subjects = len({recording.split("/")[0] for recording in recordings})
    return format_recordings(len(recordings), n_subjects)


def _format_scores(metrics: dict[str, Any], side: str) -> str:
    """Format the scores of recordings: shares in percent, or the measures of predicted numbers."""
    start = f"{side}_recording_"
    scores = {name.removeprefix(start): s for name, s in metrics.items() if name.startswith(start)}
    if not scores:
        return "not scored"
    return ", ".join(
        f"{name.replace('_', ' ')} {100 * score:.1f} %" if name.endswith("accuracy") else f"{name} {score:.3f}"
        for name, score in sorted(scores.items(), reverse=True)
    )
