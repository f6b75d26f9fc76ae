"""A table of what a results store has: its searches, protocols and trainings. Reads JSON only; needs no Ray."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from eav_ray.errors import DataError
from eav_ray.pipelines.inference.checkpoint_names import LATEST, find_model
from eav_ray.pipelines.inference.pull import open_results_store
from eav_ray.pipelines.train.fold_records import read_fold_records
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, find_finished_checkpoints
from eav_ray.training.positions import MAX_REQUESTS
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.best import read_best_record
from eav_ray.words import format_count

HEAD = ["name", "what", "score", "model"]
NOT_FINISHED = "not finished"
MAX_TRAININGS = 20  # that are listed, where no other number is given


def format_models(store: str, *, top: int = MAX_TRAININGS) -> str:
    """Format all searches and protocols of a store, and its trainings as far as they are not part of another.

    Args:
        top: So many trainings at most.
    """
    results = open_results_store(store)
    rows = [*_list_searches(results), *_list_protocols(results)]
    trainings = _list_trainings(results)
    rows += trainings[:top]
    widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD) - 1)]
    lines = [_format_row(row, widths) for row in (HEAD, *rows)]
    if len(trainings) > top:
        lines.append(f"and {format_count(len(trainings) - top, 'training')} more; --top lists so many")
    lines.append(
        "score: balanced accuracy of recordings, or the mean CCC of numbers; inner folds of a search, validation side "
        "of a training"
    )
    with contextlib.suppress(DataError):  # there is none, or it is gone
        lines.append(f"latest: {find_model(results, LATEST)}")
    return "\n".join(lines)


def _format_row(row: list[str], widths: list[int]) -> str:
    name, what, score, model = row
    return f"{name:{widths[0]}}  {what:{widths[1]}}  {score:>{widths[2]}}  {model}".rstrip()


def _list_searches(results: Store) -> Iterator[list[str]]:
    for study in results.list_folders("searches"):
        best = read_best_record(results, study)
        if best is None:
            yield [study, "search", "", f"{NOT_FINISHED}; `eav pull {results} {study} --list` shows its candidates"]
            continue
        value = best.get("value")
        score = f"{value:.4f}" if isinstance(value, int | float) else "damaged"
        yield [study, "search", score, f"candidate {best.get('candidate', '')}: {best.get('changes')}"]


def _list_protocols(results: Store) -> Iterator[list[str]]:
    for key in results.list_folders("protocols"):
        prefix = f"protocols/{key}"
        if not results.is_committed(prefix):
            yield [key, "protocol", "", NOT_FINISHED]
            continue
        try:
            records = read_fold_records(results, prefix)
        except DataError:
            yield [key, "protocol", "", "damaged"]
            continue
        yield [key, "protocol", "", f"{format_count(len(records), 'fold')}, each with a model: {key}/0"]


def _list_trainings(results: Store) -> list[list[str]]:
    """List finished trainings that no other was built on, and those that are not finished."""
    keys = results.list_folders("runs")
    finished = find_finished_checkpoints(results, keys)
    built_on = {key for checkpoint in finished.values() for key in checkpoint.state.encoder_keys.values()}
    shown = [key for key in keys if key not in built_on]
    with ThreadPoolExecutor(min(len(shown), MAX_REQUESTS) or 1) as pool:
        return list(pool.map(partial(_describe_training, finished), shown))


def _describe_training(finished: dict[str, OpenedCheckpoint], key: str) -> list[str]:
    checkpoint = finished.get(key)
    if checkpoint is None:
        return [key, "training", "", NOT_FINISHED]
    try:
        e, score = checkpoint.experiment, checkpoint.metrics.get(SELECTION_METRIC)
    except DataError:
        return [key, "training", "", "damaged"]
    fold = f"fold {e.split.index} of {checkpoint.split.protocol}"
    modalities = ", ".join(sorted(e.data.modalities))
    return [key, "training", f"{score:.4f}" if isinstance(score, float) else "", f"{e.name}, {fold}: {modalities}"]
