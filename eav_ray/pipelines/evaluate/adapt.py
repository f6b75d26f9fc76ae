"""A trained checkpoint brought closer to one new person, by some labelled recordings of theirs."""

from typing import Any

from eav_ray.config import Experiment, OptimConfig, override, to_dict
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import list_labeled_recordings, make_adaptation_split
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.errors import ConfigError
from eav_ray.evaluation.compatibility import check_windows, match_dataset_channels
from eav_ray.evaluation.expected_result import refuse_final
from eav_ray.pipelines.evaluate.number_limits import require_classes
from eav_ray.pipelines.inference.checkpoint_names import record_latest
from eav_ray.pipelines.inference.predict import print_note
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.storage import Store
from eav_ray.training.checkpoint import open_finished_checkpoint
from eav_ray.training.run_spec import Run, plan_adaptation_run


def plan_adaptation(experiment: Experiment, data: Dataset, path: str, subject: str, recordings: int) -> Run:
    """Plan the training of one adaptation.

    Args:
        experiment: Whose `train.adaptation`, runtime and stores count; the rest is the checkpoint's.
        path: A finished checkpoint that was never trained on this person.
    """
    if problem := experiment.runtime.find_batch_problem("train.adaptation.batch", experiment.train.adaptation.batch):
        raise ConfigError(problem)
    checkpoint = open_finished_checkpoint(path)
    refuse_final(checkpoint, "adapted")
    trained_experiment = checkpoint.experiment
    require_classes(
        trained_experiment.data, "`eav adapt`", "train with the person's recordings (split.protocol=within)", of=path
    )
    check_windows(experiment, checkpoint, data.index)
    if "eeg" in trained_experiment.data.modalities:
        index = data.index
        _, note = match_dataset_channels(experiment, checkpoint, index.eeg_channel_names, index.eeg_channels)
        print_note(note)
    current = to_dict(experiment)
    batches = {f"{key}.batch": section.batch for key, section in _list_optimizer_sections(experiment).items()}
    # Batches too, though only that of the adaptation counts: the workers of now must divide all of them.
    e = override(
        trained_experiment,
        {
            "runtime": current["runtime"],
            "store": current["store"],
            "train.adaptation": current["train"]["adaptation"],
            **_declare_access(trained_experiment, recordings),
            **batches,
        },
    )
    items = list_labeled_recordings(data.windows.ids, trained_experiment.data, trained_experiment.seed)
    adaptation_split = make_adaptation_split(checkpoint.split, items, subject, recordings)
    return plan_adaptation_run(e, adaptation_split, data.digest, checkpoint.path, checkpoint.commit_sha256)


def _declare_access(experiment: Experiment, recordings: int) -> dict[str, Any]:
    """Declare that labelled recordings are used, of a model that looked at nothing else of a tested subject."""
    if experiment.split.access != "source_only":
        return {}
    return {"split.access": "labelled_k", "split.access_recordings": recordings}


def _list_optimizer_sections(experiment: Experiment) -> dict[str, OptimConfig]:
    train, encoders = experiment.train, experiment.train.encoders
    named = {f"train.encoders.{m}": encoders[m] for m in encoders}
    return {"optim": experiment.optim, "train.joint": train.joint} | named


def adapt_to_subject(experiment: Experiment, path: str, subject: str, recordings: int) -> str:
    """Returns the path of the adapted checkpoint, whose test side is the rest of the person's recordings."""
    data = open_dataset(experiment)
    run = plan_adaptation(experiment, data, path, subject, recordings)
    with connect_experiment(experiment) as experiment:
        announce_workload(experiment, [run], data)
        checkpoint_prefixes = train_all_runs(experiment, [run], data, title="adapt")
    results = Store(experiment.store.results)
    record_latest(results, "runs", run.key)
    return results.format_path(checkpoint_prefixes[run.key])
