"""What some labelled recordings of a new person are worth: accuracy over their number.

    python -m benchmarks.adaptation FOLDER

On the synthetic people and the checkpoints that `python -m benchmarks.synthetic FOLDER` leaves. Every number of
recordings is scored on the same ones: those that the largest number does not adapt with. One seed.
"""

import sys

import pandas as pd

from benchmarks.common import Goal, finish_benchmark, parse_arguments
from benchmarks.gains import format_gains
from benchmarks.synthetic import FOLDS, SPEC, make_experiment
from eav_ray.config import override
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.pipelines.evaluate.adapt import plan_adaptation
from eav_ray.pipelines.evaluate.split_predictions import predict_test_split
from eav_ray.pipelines.train.train import train
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, open_finished_checkpoint
from eav_ray.training.metrics import average_per_recording, predict_classes

RECORDING_COUNTS = (0, 5, 10, 20)


def main() -> int:
    folder, _ = parse_arguments(__doc__)
    e = make_experiment(folder, {})
    parts = []
    with connect_experiment(e) as e:
        data = open_dataset(e)
        paths = [train(override(e, {"split.index": fold})).path for fold in range(FOLDS)]
        checkpoint_by_subject = {i.split("/")[0]: p for p in paths for i in open_finished_checkpoint(p).split.test}
        assert len(checkpoint_by_subject) == SPEC.n_subjects
        runs = {
            (s, k): plan_adaptation(e, data, p, s, k)
            for s, p in checkpoint_by_subject.items()
            for k in RECORDING_COUNTS
            if k
        }
        announce_workload(e, list(runs.values()), data)
        prefixes = train_all_runs(e, list(runs.values()), data, title="adapt")
        for subject, path in checkpoint_by_subject.items():
            scored = {i.split("/")[1] for i in runs[subject, RECORDING_COUNTS[-1]].split.test}
            for k in RECORDING_COUNTS:
                prefix = prefixes[runs[subject, k].key] if k else ""
                checkpoint = OpenedCheckpoint(Store(e.store.results), prefix) if k else open_finished_checkpoint(path)
                table = average_per_recording(predict_test_split(e, checkpoint, data))
                table = table[(table["subject"] == subject) & table["recording"].isin(scored)]
                correct = predict_classes(table, "fusion") == table["label"].to_numpy()
                parts.append({"subject": subject, "recordings": k, "accuracy": correct.mean(), "scored": len(correct)})
    table = pd.DataFrame(parts).pivot(index="subject", columns="recordings", values="accuracy") * 100
    lines = [
        f"{SPEC.n_subjects} synthetic people never seen before, {parts[0]['scored']} recordings of each scored; fusion "
        "and heads trained on, encoders as they were.",
        "",
        *format_gains("labelled recordings", {str(k): table[k] for k in RECORDING_COUNTS}, "0"),
    ]
    goal = Goal(
        f"gain by {RECORDING_COUNTS[-1]} recordings",
        float((table[RECORDING_COUNTS[-1]] - table[0]).mean()),
        0,
        " points",
    )
    return finish_benchmark(
        "adaptation", "Adaptation to a new subject by labelled recordings", "\n".join(lines), [goal]
    )


if __name__ == "__main__":
    sys.exit(main())
