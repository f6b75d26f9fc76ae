"""Find a checkpoint by what a user calls it: a path, the beginning of a name in a results store, or `latest`.

A training, a search and a protocol have a folder each, named by a key such as `fusion-3f0c2a91b7d45e68`. Its beginning
is enough, or that of its last part (`3f0c`). One fold of a protocol is `KEY/FOLD`. Needs no Ray.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from eav_ray.config.paths import is_submitted_job
from eav_ray.errors import ConfigError, DataError, suggest_nearest
from eav_ray.pipelines.train.fold_records import read_fold_records
from eav_ray.storage import Store, check_format, check_store_name
from eav_ray.training.checkpoint import OpenedCheckpoint, find_finished_checkpoint, open_finished_checkpoint
from eav_ray.training.checkpoint_files import STATE
from eav_ray.tuning.best import read_best_record

Folder = Literal["runs", "searches", "protocols"]
FOLDERS: tuple[Folder, ...] = get_args(Folder)  # of a results store, in which models have names
WORDS: dict[Folder, str] = {"runs": "training", "searches": "search", "protocols": "protocol"}
LATEST, LATEST_FILE, LATEST_FORMAT = "latest", "latest.json", 1
SHORT_KEY_LETTERS = 8  # of the last part of a key, in what commands print
MAX_SHOWN = 5


@dataclass(frozen=True)
class NamedModel:
    """A training, a search, or a protocol or one fold of it, in a results store."""

    folder: Folder
    key: str
    fold: int | None = None

    def __str__(self) -> str:
        return f"{self.key} ({WORDS[self.folder]})"


def shorten_key(key: str) -> str:
    """Shorten a key to what names it as well: `fusion-3f0c2a91` of `fusion-3f0c2a91b7d45e68`."""
    start, dash, last = key.rpartition("-")
    return f"{start}{dash}{last[:SHORT_KEY_LETTERS]}"


def shorten_keys(keys: Collection[str]) -> dict[str, str]:
    """Shorten keys as `shorten_key`, but for those that would be called as another one."""
    counts = Counter(map(shorten_key, keys))
    return {key: key if counts[shorten_key(key)] > 1 else shorten_key(key) for key in keys}


def find_checkpoint(name: str, results: str | Path) -> OpenedCheckpoint:
    """Open a checkpoint that can predict, as `find_checkpoint_path` finds it.

    Raises:
        ConfigError: Several things in the store are called so.
        DataError: There is none, it is damaged, or it is from the middle of a training.
    """
    return open_finished_checkpoint(find_checkpoint_path(name, results))


def find_checkpoint_path(name: str, results: str | Path) -> str:
    """Find the path of a checkpoint; what lies at a path that is given is not opened.

    Args:
        name: A path, or a name in the results store.
        results: The results store; it is looked at only where there is no such path.

    Raises:
        ConfigError: Several things in the store are called so.
        DataError: There is none.
    """
    if "://" in name:
        return name
    path = Path(os.path.expanduser(name)).absolute()
    is_checkpoint = (path / STATE).exists()
    if path.parent.name in FOLDERS and path.parent.is_dir() and not is_checkpoint:  # as `ls` shows it
        store = Store(path.parent.parent)
        return open_named(store, find_model(store, path.name)).path
    if not path.exists():
        return open_named(Store(results), find_model(Store(results), name)).path
    if any((path / folder).is_dir() for folder in FOLDERS):
        raise DataError(
            f"{path} is a results store, not a checkpoint; `eav pull {name} --list` lists what it has, and "
            f"store.results={name} lets you name it"
        )
    return str(path)


def find_model(results: Store, name: str) -> NamedModel:
    """Find what a user calls by the beginning of its key, `latest`, or `KEY/FOLD`.

    Raises:
        ConfigError: Several things are called so.
        DataError: Nothing is.
    """
    start, slash, fold = name.partition("/")
    if slash and not fold.isdecimal():
        path = Path(os.path.expanduser(name)).absolute()
        raise DataError(f"{path} does not exist{suggest_sibling(path)}{_describe_job_folder(name)}")
    if start == LATEST:
        return _add_fold(_read_latest(results), fold)
    models = list_models(results)
    found = [m for m in models if m.key == start] or [
        m for m in models if start and (m.key.startswith(start) or m.key.rpartition("-")[2].startswith(start))
    ]
    if len(found) > 1:
        shown = ", ".join(map(str, found[:MAX_SHOWN])) + (", ..." if len(found) > MAX_SHOWN else "")
        raise ConfigError(f"{name} may be any of {len(found)} in {results}: {shown}; give more letters of one")
    if not found:
        path = Path(os.path.expanduser(name)).absolute()
        nearest = suggest_sibling(path) or suggest_nearest(start, [m.key for m in models])
        there = f"`eav pull {results} --list` lists what is there" if models else f"{results} has none yet"
        raise DataError(
            f"no checkpoint {name}: there is no such folder, and no training, search or protocol in {results} whose "
            f"name begins so{nearest}; {there}{_describe_job_folder(name)}"
        )
    return _add_fold(found[0], fold)


def _add_fold(model: NamedModel, fold: str) -> NamedModel:
    if fold and model.folder != "protocols":
        raise ConfigError(f"{model} has no folds; give it without /{fold}")
    return NamedModel(model.folder, model.key, int(fold)) if fold else model


def list_models(results: Store) -> list[NamedModel]:
    """List all trainings, searches and protocols of a store, those that are not finished among them."""
    return [NamedModel(folder, key) for folder in FOLDERS for key in results.list_folders(folder)]


def suggest_sibling(path: Path) -> str:
    """Suggest the folder beside it with the nearest name."""
    with contextlib.suppress(OSError):
        return suggest_nearest(path.name, [each.name for each in path.parent.iterdir() if each.is_dir()])
    return ""


def _describe_job_folder(name: str) -> str:
    if not is_submitted_job() or os.path.isabs(name):
        return ""
    return "; a submitted job runs in a temporary copy of the folder, so give an absolute path, or s3:// or gs://"


def open_named(results: Store, model: NamedModel) -> OpenedCheckpoint:
    """Open the finished checkpoint of a training, the best one of a search, or that of one fold of a protocol.

    Raises:
        ConfigError: A protocol of several folds, and none is named.
        DataError: It is not finished, or damaged.
    """
    if model.folder == "runs":
        checkpoint = find_finished_checkpoint(results, model.key)
        if checkpoint is None:
            raise DataError(f"the training {model.key} in {results} is not finished; rerun its command to continue")
        return checkpoint
    record = _read_best(results, model.key) if model.folder == "searches" else _read_fold(results, model)
    return open_recorded(results, record, results.format_path(f"{model.folder}/{model.key}"))


def open_recorded(results: Store, record: dict[str, Any], path: str) -> OpenedCheckpoint:
    """Open the checkpoint that a record names.

    Args:
        record: Holds `checkpoint` and `commit_sha256`.
        path: Of what it is of, for errors.

    Raises:
        DataError: The record is damaged, or another checkpoint has taken that place.
    """
    try:
        checkpoint = OpenedCheckpoint(results, check_store_name(str(record["checkpoint"])))
        expected = record["commit_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"the record of {path} is damaged: {error!r}; rerun the command that made it") from None
    if checkpoint.commit_sha256 != expected:
        raise DataError(f"{checkpoint.path} is not the checkpoint that {path} names; rerun the command that made it")
    return checkpoint


def _read_best(results: Store, study: str) -> dict[str, Any]:
    best = read_best_record(results, study)
    if best is None:
        raise DataError(
            f"the search {study} is not finished; rerun its command to continue, or see its candidates with `eav pull "
            f"{results} {study} --list`"
        )
    return best


def _read_fold(results: Store, model: NamedModel) -> dict[str, Any]:
    prefix = f"protocols/{model.key}"
    path, short = results.format_path(prefix), shorten_key(model.key)
    if not results.is_committed(prefix):
        raise DataError(f"the protocol {model.key} in {results} is not finished; rerun its command to continue")
    by_fold: dict[int | None, dict[str, Any]] = {r["fold"]: r for r in read_fold_records(results, prefix)}
    if not by_fold:
        raise DataError(f"{path} was damaged; delete it and give the command again")
    if model.fold is None and len(by_fold) == 1:
        return next(iter(by_fold.values()))
    if model.fold not in by_fold:
        folds = sorted(number for number in by_fold if number is not None)
        raise ConfigError(
            f"the protocol {short} has a model for each of the folds {', '.join(map(str, folds))}; name one, for "
            f"example {short}/{folds[0]}"
        )
    return by_fold[model.fold]


def record_latest(results: Store, folder: Folder, key: str) -> None:
    """Keep what `latest` names: what the last command ended with that trains.

    Nothing where the store cannot be written: what is finished may be read there all the same.
    """
    record = {"format": LATEST_FORMAT, "folder": folder, "key": key}
    kept = None
    with contextlib.suppress(DataError):
        kept = results.read_json(LATEST_FILE) if results.exists(LATEST_FILE) else None
    if kept != record:
        with contextlib.suppress(DataError):
            results.write_json(LATEST_FILE, record)


def _read_latest(results: Store) -> NamedModel:
    path = results.format_path(LATEST_FILE)
    if not results.exists(LATEST_FILE):
        raise DataError(f"{results} has no latest training: no `eav train`, `eav search` or `eav protocol` ended there")
    tree = results.read_json(LATEST_FILE)
    number, folder, key = (tree.get(k) for k in ("format", "folder", "key")) if isinstance(tree, dict) else (0, "", "")
    check_format(number, LATEST_FORMAT, path, "delete it")
    model = NamedModel(folder, str(key)) if folder in FOLDERS else None
    if model is None or model not in list_models(results):
        raise DataError(f"{path} names {key}, which is not there any more; `eav pull {results} --list` lists what is")
    return model
