"""One outer fold: each encoder alone, then the fusion on all of them; or all together."""

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.reporting.tables import format_collapse_warnings
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.run_spec import plan_runs


def train(experiment: Experiment) -> str:
    """Train one fold, or continue it.

    Returns:
        Path of the finished checkpoint.
    """
    data = open_dataset(experiment)
    split = make_split(list_labeled_recordings(data.windows.ids, experiment.data, experiment.seed), experiment.split)
    runs = plan_runs(experiment, split, data.digest)
    results = Store(experiment.store.results)
    with connect_experiment(experiment) as experiment:
        announce_workload(experiment, runs, data)
        done = train_all_runs(experiment, runs, data, title="train")
    checkpoint = OpenedCheckpoint(results, done[runs[-1].key])
    for line in format_collapse_warnings(checkpoint.metrics):
        print(line)
    return checkpoint.path
