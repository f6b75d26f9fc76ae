"""A trained checkpoint brought closer to one new person, by some labelled recordings of theirs."""

from dataclasses import replace

from eav_ray.config import Experiment
from eav_ray.data.split import calibration_split, items_of
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_all
from eav_ray.runtime.predict import open_checkpoint
from eav_ray.runtime.train import Data, announce, open_data
from eav_ray.storage import COMMIT, Store, sha256, split
from eav_ray.training.plan import Run, calibration_run


def plan_calibration(experiment: Experiment, data: Data, path: str, subject: str, recordings: int) -> Run:
    """The training of one calibration.

    Args:
        experiment: Whose `train.calibration`, runtime and stores count; the rest is the checkpoint's.
        path: A finished checkpoint that was never trained on this person.
    """
    checkpoint, (store, name) = open_checkpoint(path), split(path)
    own = checkpoint.experiment
    e = replace(
        own,
        runtime=experiment.runtime,
        store=experiment.store,
        train=replace(own.train, calibration=experiment.train.calibration),
    )
    items = items_of(data.windows.ids, own.data, own.seed)
    chosen = calibration_split(checkpoint.split, items, subject, recordings)
    return calibration_run(e, chosen, data.digest, path, sha256(store.read(f"{name}/{COMMIT}")))


def calibrate(experiment: Experiment, path: str, subject: str, recordings: int) -> str:
    """Returns the path of the calibrated checkpoint, whose test side is the rest of the person's recordings."""
    data = open_data(experiment)
    run = plan_calibration(experiment, data, path, subject, recordings)
    with cluster.session(experiment.runtime):
        announce(experiment, [run], data)
        done = run_all(experiment, [run], data.shards, data.index, run.split.train, title="calibrate")
    return f"{Store(experiment.store.results)}/{done[run.key]}"
