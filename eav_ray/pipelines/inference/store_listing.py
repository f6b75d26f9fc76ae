"""A table of what a results store has: its searches, protocols and trainings. Reads JSON only; needs no Ray."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from eav_ray.config.keys import format_value
from eav_ray.errors import DataError
from eav_ray.pipelines.inference.checkpoint_names import (
    LATEST,
    find_model,
    list_models,
    open_recorded,
    shorten_keys,
)
from eav_ray.pipelines.inference.model_differences import (
    describe_predicted,
    describe_split,
    format_differences,
    list_data_facts,
    list_differences,
    list_settings,
)
from eav_ray.pipelines.inference.pull import open_results_store
from eav_ray.pipelines.train.fold_records import read_fold_records
from eav_ray.storage import COMMIT, Store
from eav_ray.training.checkpoint import OpenedCheckpoint, find_finished_checkpoints
from eav_ray.training.positions import MAX_REQUESTS
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.best import BEST_FILE, read_best_record
from eav_ray.words import format_count

HEAD = ("name", "what", "modalities", "predicts", "split", "score", "epochs", "date", "notes")
NOT_FINISHED, DAMAGED = "not finished", "damaged"
MAX_TRAININGS = 20  # that are listed, where no other number is given
LEGEND = (
    "score: balanced accuracy of recordings, or the mean CCC of numbers: on inner folds of a search, on the validation "
    "side of a training",
    "split: the protocol and its fold; notes: settings in which models of a kind differ",
)


@dataclass(frozen=True)
class ListedModel:
    """A line of the table.

    Attributes:
        name: By which commands find it.
        cells: What the table shows of it, by column.
        notes: Beside what it differs in.
        settings: In which it may differ from others of its group.
        facts: In which it may differ from others that are shown alike.
    """

    name: str
    what: str
    cells: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def get(self, column: str) -> str:
        own = {"name": self.name, "what": self.what, "notes": "; ".join(self.notes)}
        return own.get(column, self.cells.get(column, ""))


def format_models(store: str, *, top: int = MAX_TRAININGS) -> str:
    """Format a table of all searches, protocols and trainings of a store.

    Args:
        top: So many trainings at most.
    """
    results = open_results_store(store)
    models, n_trainings = describe_models(results, top=top)
    widths = {column: max(len(column), *(len(model.get(column)) for model in models)) for column in HEAD}
    lines = [_format_row(widths, lambda column: column), *(_format_row(widths, model.get) for model in models)]
    if n_trainings > top:
        lines.append(f"and {format_count(n_trainings - top, 'training')} more; --top lists so many")
    lines += LEGEND
    with contextlib.suppress(DataError):  # there is none, or it is gone
        lines.append(f"latest: {find_model(results, LATEST)}")
    return "\n".join(lines)


def describe_models(results: Store, *, top: int = MAX_TRAININGS) -> tuple[list[ListedModel], int]:
    """Describe all searches, protocols and trainings of a store, the last ones of each first.

    Args:
        top: So many trainings at most: those that no other was built on before those that are part of another.

    Returns:
        They, and how many trainings there are.
    """
    names = shorten_keys({model.key for model in list_models(results)})
    trainings, n_trainings = _list_trainings(results, names, top)
    models = [*_list_searches(results, names), *_list_protocols(results, names), *trainings]
    return add_differences(models), n_trainings


def _format_row(widths: Mapping[str, int], get: Callable[[str], str]) -> str:
    cells = (get(c).rjust(widths[c]) if c in ("score", "epochs") else get(c).ljust(widths[c]) for c in HEAD)
    return "  ".join(cells).rstrip()


def add_differences(models: Iterable[ListedModel]) -> list[ListedModel]:
    """Note of each model in which settings it differs from the others that are of its kind.

    Models that look alike even so are told apart by the recordings that they were trained on. The name of a search or
    a protocol begins with that of its experiment; of trainings it is a note, where they are of several.
    """
    noted = _add_differences(models, ("what", "experiment", "modalities", "predicts"), lambda model: model.settings)
    experiments = {model.get("experiment") for model in noted} - {""}
    if len(experiments) > 1:
        noted = [
            replace(one, notes=(one.cells["experiment"], *one.notes)) if one.what == "training" and one.cells else one
            for one in noted
        ]
    shown = tuple(column for column in HEAD if column not in ("name", "score", "date"))
    return _add_differences(noted, shown, lambda model: model.facts)


def _add_differences(
    models: Iterable[ListedModel], columns: Sequence[str], select: Callable[[ListedModel], Mapping[str, Any]]
) -> list[ListedModel]:
    listed = list(models)
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, model in enumerate(listed):
        if select(model):
            groups.setdefault(tuple(map(model.get, columns)), []).append(number)
    for numbers in groups.values():
        differences = list_differences([select(listed[number]) for number in numbers])
        for number, found in zip(numbers, differences, strict=True):
            if found:
                listed[number] = replace(listed[number], notes=(format_differences(found), *listed[number].notes))
    return listed


def _list_searches(results: Store, names: Mapping[str, str]) -> Iterator[ListedModel]:
    times = results.list_times("searches")
    for study in _sort_by_time(results.list_folders("searches"), times):
        best = read_best_record(results, study)
        if best is None:
            note = f"{NOT_FINISHED}; `eav pull {results} {names[study]} --list` shows its candidates"
            yield ListedModel(names[study], "search", notes=(note,))
            continue
        value, changes = best.get("value"), best.get("changes")
        changed = dict(changes) if isinstance(changes, dict) else {}
        score = f"{value:.4f}" if isinstance(value, int | float) else DAMAGED
        what = " ".join(f"{key}={format_value(value)}" for key, value in changed.items())
        search = ListedModel(names[study], "search", notes=(f"candidate {best.get('candidate', '')}: {what}",))
        cells = {"score": score, "date": _format_time(times, f"{study}/{BEST_FILE}")}
        try:
            checkpoint = open_recorded(results, best, results.format_path(f"searches/{study}"))
            search = _describe(search, checkpoint, cells, is_search=True)
        except DataError:
            search = replace(search, cells=cells, notes=("its checkpoint is damaged or gone", *search.notes))
        yield replace(search, settings={k: v for k, v in search.settings.items() if k not in changed})


def _list_protocols(results: Store, names: Mapping[str, str]) -> Iterator[ListedModel]:
    times = results.list_times("protocols")
    for key in _sort_by_time(results.list_folders("protocols"), times):
        prefix, protocol = f"protocols/{key}", ListedModel(names[key], "protocol")
        if not results.is_committed(prefix):
            yield replace(protocol, notes=(NOT_FINISHED,))
            continue
        try:
            records = read_fold_records(results, prefix)
            first = records[0]
            checkpoint = open_recorded(results, first, results.format_path(prefix))
            note = f"a model for each fold, as {names[key]}/{first['fold']}"
            cells = {
                "split": f"{checkpoint.split.protocol}, {format_count(len(records), 'fold')}",
                "date": _format_time(times, f"{key}/{COMMIT}"),
            }
            yield _describe(replace(protocol, notes=(note,)), checkpoint, cells)
        except (DataError, IndexError):
            yield replace(protocol, notes=(DAMAGED,))


def _list_trainings(results: Store, names: Mapping[str, str], top: int) -> tuple[list[ListedModel], int]:
    """List trainings, those that are part of another after all others; returns them, and how many there are."""
    times, keys = results.list_times("runs"), results.list_folders("runs")
    finished = find_finished_checkpoints(results, keys)
    parts = {part: key for key, whole in finished.items() for part in whole.state.encoder_keys.values()}
    ordered = sorted(_sort_by_time(keys, times), key=lambda key: key in parts)
    with ThreadPoolExecutor(min(top, len(ordered), MAX_REQUESTS) or 1) as pool:
        return list(pool.map(partial(_list_training, names, times, finished, parts), ordered[:top])), len(ordered)


def _list_training(
    names: Mapping[str, str],
    times: Mapping[str, float],
    finished: Mapping[str, OpenedCheckpoint],
    parts: Mapping[str, str],
    key: str,
) -> ListedModel:
    training, checkpoint = ListedModel(names[key], "training"), finished.get(key)
    if checkpoint is None:
        return replace(training, notes=(NOT_FINISHED,))
    try:
        score = checkpoint.metrics.get(SELECTION_METRIC)
        cells = {
            "score": f"{score:.4f}" if isinstance(score, float) else "",
            "date": _format_time(times, f"{checkpoint.prefix.removeprefix('runs/')}/{COMMIT}"),
        }
        notes = (f"part of {names[parts[key]]}",) if key in parts else ()
        return _describe(replace(training, notes=notes), checkpoint, cells)
    except DataError:
        return replace(training, notes=(DAMAGED,))


def _describe(
    model: ListedModel, checkpoint: OpenedCheckpoint, cells: Mapping[str, str], *, is_search: bool = False
) -> ListedModel:
    """Fill in what a checkpoint says of itself.

    Raises:
        DataError: It is damaged.
    """
    e, split, state = checkpoint.experiment, checkpoint.split, checkpoint.state
    own = {
        "experiment": e.name,
        "modalities": ", ".join(sorted(e.data.modalities)),
        "predicts": describe_predicted(state),
        "split": describe_split(split, e),
        "epochs": str(state.position.epoch),
    }
    settings = list_settings(e, split, is_search=is_search)
    return replace(model, cells={**own, **cells}, settings=settings, facts=list_data_facts(checkpoint))


def _sort_by_time(keys: Iterable[str], times: Mapping[str, float]) -> list[str]:
    """Sort folders by when a file of theirs was written last, the latest first."""
    last: dict[str, float] = {}
    for name, time in times.items():
        key = name.partition("/")[0]
        last[key] = max(time, last.get(key, 0.0))
    return sorted(keys, key=lambda key: -last.get(key, 0.0))


def _format_time(times: Mapping[str, float], name: str) -> str:
    return datetime.fromtimestamp(times[name]).strftime("%Y-%m-%d %H:%M") if name in times else ""
