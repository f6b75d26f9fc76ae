"""What a results store holds of a subject: predictions, embeddings, tables and pages, and the models that know them."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.data.io.parquet import ARROW_READ_ERRORS, FORMAT_KEY
from eav_ray.errors import StorageError
from eav_ray.pipelines.withdraw.mentions import holds_subject, is_of_subject
from eav_ray.storage import LOCK, Store

MODELS = "runs"
SEARCHES = "searches"
# Folders with a folder for each thing that is made as a whole; elsewhere, a page and what lies beside it is one.
WHOLE = (MODELS, SEARCHES, "ablations", "baselines", "comparisons", "embeddings", "features", "protocols", "robustness")
SINGLE = ("evaluations",)  # folders of files that are each made as a whole
EXPERIMENT_FILES = ("experiment.json", "results.json")
SPLIT_FILE, STATE_FILE = "split.json", "state.json"  # of a checkpoint
PAGE_FILES = ("index.html", "results.json")


@dataclass
class ResultHoldings:
    """What is held of a subject, by name in the results store.

    Attributes:
        deleted: Folders and files that go.
        models: Runs and searches that have learned from the subject, or were chosen by them: name -> how.
        adapted: Runs that began with a model of which they do not say whom it knows.
        tested: Runs that only name the subject, as one whom they were not trained on.
        other_roots: Of other data sets with a subject of this name, which are left alone.
        unknown: Files that name the subject, and that this program is not known to have written: they are left alone.
    """

    deleted: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)
    other_roots: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def find_result_holdings(store: Store, subject: str, roots: set[str]) -> ResultHoldings:
    """Find what a results store holds of a subject.

    Args:
        roots: Where their data set lies. What is made of another is left alone; what does not say of which it is made
            (embeddings and predictions, which are made anew where they are wanted) counts as theirs.
    """
    found = ResultHoldings()
    units: dict[str, list[str]] = {}
    for name in store.list_files():
        units.setdefault(_name_unit(name), []).append(name)
    for unit, names in sorted(units.items()):
        kind = unit.split("/")[0]
        if kind == MODELS:
            _add_model(store, unit, names, subject, roots, found)
        elif any(holds_subject(store, name, subject) for name in sorted(names, key=_order_by_cost)):
            root = _find_root(store, names)
            if root and root not in roots:
                found.other_roots.add(root)
            elif kind == SEARCHES:
                tables = [n for n in names if n.endswith(".parquet") and holds_subject(store, n, subject)]
                found.deleted += tables
                found.models[unit] = "searched with an experiment that names them"
            elif kind in (*WHOLE, *SINGLE) or _is_page(unit, names):
                found.deleted.append(unit)
            else:
                held = [n for n in names if holds_subject(store, n, subject)]
                found.deleted += [n for n in held if _is_table_of_ours(store, n)]
                found.unknown += [n for n in held if n not in found.deleted]
    _add_models_of_encoders(store, units, found)
    return found


def list_locks(store: Store) -> list[str]:
    """List the locks of all jobs that write results."""
    names = [n.removesuffix(".lease") for n in store.list_files()]
    return sorted({n for n in names if PurePosixPath(n).name == LOCK or n.endswith(f".{LOCK}")})


def delete_unit(store: Store, unit: str) -> None:
    """Delete a folder or a file.

    Raises:
        DataError: A job holds the lock of the folder.
    """
    is_folder = bool(store.list_files(unit)) and unit not in store.list_files(unit)
    if not is_folder:
        store.delete(unit)
        return
    with store.lock(f"{unit}/{LOCK}") as locked:
        locked.delete(unit)


def _name_unit(name: str) -> str:
    parts = name.split("/")
    if parts[0] in WHOLE and len(parts) > 2:
        return "/".join(parts[:2])
    if parts[0] in (*WHOLE, *SINGLE) or len(parts) == 1:
        return name
    return str(PurePosixPath(name).parent)


def _is_page(unit: str, names: list[str]) -> bool:
    """Tell whether a folder is one that `eav evaluate --out` writes."""
    return {f"{unit}/{file}" for file in PAGE_FILES} <= set(names)


def _is_table_of_ours(store: Store, name: str) -> bool:
    """Tell whether a file is a table of predictions that this program wrote."""
    if not name.endswith(".parquet"):
        return False
    try:
        return FORMAT_KEY in (pq.read_schema(pa.BufferReader(store.read(name))).metadata or {})
    except ARROW_READ_ERRORS:
        return False


def _order_by_cost(name: str) -> tuple[bool, str]:
    """Small files first: one that holds the subject is enough."""
    return not name.endswith(".json"), name


def _read_json(store: Store, name: str) -> Any:
    try:
        return store.read_json(name)
    except StorageError:
        raise
    except ValueError:
        return None


def _find_root(store: Store, names: list[str]) -> str:
    """Find the `data.root` of the experiment that something was made with; empty where it says none."""
    for name in (n for n in names if PurePosixPath(n).name in EXPERIMENT_FILES):
        tree = _read_json(store, name)
        for one in (tree, tree.get("experiment") if isinstance(tree, dict) else None):
            data = one.get("data") if isinstance(one, dict) else None
            if isinstance(data, dict) and data.get("root"):
                return str(data["root"])
    return ""


def _add_model(store: Store, unit: str, names: list[str], subject: str, roots: set[str], found: ResultHoldings) -> None:
    counts: dict[str, int] = {}
    is_adapted = False
    for name in (n for n in names if PurePosixPath(n).name == SPLIT_FILE):
        split = _read_json(store, name)
        split = split if isinstance(split, dict) else {}
        is_adapted |= split.get("protocol") == "adapted"
        for side in ("train", "validation", "test"):
            count = sum(is_of_subject(str(i), subject) for i in split.get(side, ()))
            counts[side] = max(counts.get(side, 0), count)
    root = _find_root(store, names)
    if root and root not in roots:
        found.other_roots |= {root} if any(counts.values()) else set()
    elif counts.get("train") or counts.get("validation"):
        sides = (("trained on", "train"), ("chosen by", "validation"))
        words = [f"{verb} {counts[side]}" for verb, side in sides if counts[side]]
        found.models[unit] = f"{' and '.join(words)} of their recordings"
    elif is_adapted:
        found.adapted.append(unit)
    elif any(counts.values()):
        found.tested.append(unit)


def _add_models_of_encoders(store: Store, units: dict[str, list[str]], found: ResultHoldings) -> None:
    """Add the fusions of encoders that know the subject."""
    for unit, names in units.items():
        if unit.split("/")[0] != MODELS or unit in found.models:
            continue
        for name in (n for n in names if PurePosixPath(n).name == STATE_FILE):
            tree = _read_json(store, name)
            keys = tree.get("encoder_keys") if isinstance(tree, dict) else None
            known = [k for k in (keys.values() if isinstance(keys, dict) else ()) if f"{MODELS}/{k}" in found.models]
            if known:
                found.models[unit] = f"made of {MODELS}/{known[0]}, which knows them"
                found.tested = [one for one in found.tested if one != unit]
