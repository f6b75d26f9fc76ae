"""What a store of shards holds of a subject, and how it is taken out."""

import glob
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from eav_ray.config import DataConfig
from eav_ray.data.shards.content import HASHES_FOLDER
from eav_ray.data.shards.index import INDEX_FILE
from eav_ray.data.shards.location import INDEXES_FOLDER
from eav_ray.errors import StorageError
from eav_ray.pipelines.withdraw.mentions import holds_subject, is_name_of_subject, is_of_subject
from eav_ray.storage import LOCK, Store
from eav_ray.storage.files import PARTIAL


@dataclass
class ShardHoldings:
    """What is held of a subject of one data set, by name in the store of shards.

    Attributes:
        files: Shards, records and pages that go.
        indexes: Folders of indexes from which the subject's rows go.
        hashes: Files of remembered hashes.
        roots: Where the data set lies, or lay: each `data.root` whose shards of the subject are the same.
        other_roots: Other data sets with a subject of this name, which are left alone.
        subjects: All whom the data set's shards hold.
    """

    files: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    roots: set[str] = field(default_factory=set)
    other_roots: set[str] = field(default_factory=set)
    subjects: set[str] = field(default_factory=set)


def find_shard_holdings(store: Store, data: DataConfig, subject: str) -> ShardHoldings:
    """Find what a store of shards holds of a subject, made with any preprocessing.

    Of two data sets with a subject of the same name, only that of `data.root` is meant, and those that have the very
    same shards: it was moved, or copied.
    """
    found = ShardHoldings(roots={data.root})
    names = store.list_files()
    indexes = {
        str(PurePosixPath(name).parent): _read_tree(store, name)
        for name in names
        if name.startswith(f"{data.dataset}-") and _is_index(name)
    }
    shards = {folder: _list_shards(folder, tree, subject) for folder, tree in indexes.items()}
    is_growing = True
    while is_growing:  # a set that shares a shard is the same one, and so is a third that shares one with it
        own = {file for folder, files in shards.items() if _get_root(indexes[folder]) in found.roots for file in files}
        linked = {_get_root(indexes[folder]) for folder, files in shards.items() if files & own} - found.roots
        found.roots |= linked
        is_growing = bool(linked)
    protected: set[str] = set()
    for folder, tree in indexes.items():
        if _get_root(tree) in found.roots:
            found.subjects |= {str(shard.get("subject", "")) for shard in tree.get("shards", [])}
            own_files = [n for n in names if str(PurePosixPath(n).parent) == folder]
            if any(holds_subject(store, n, subject) for n in own_files if n.endswith(".json")):
                found.indexes.append(folder)
                found.files += [n for n in own_files if n.endswith(".html")]
        else:
            protected |= shards[folder]
            found.other_roots |= {_get_root(tree)} if shards[folder] else set()
    places = {folder.split("/")[0] for folder in indexes} | {
        n.split("/")[0] for n in names if n.startswith(f"{data.dataset}-") and "/" in n
    }
    for name in names:
        place, _, rest = name.partition("/")
        kind, _, file = rest.partition("/")
        if place in places and kind in ("shards", "records") and is_name_of_subject(file, subject):
            shard = f"{place}/shards/{PurePosixPath(file).stem}.parquet"
            if shard not in protected and _is_shard_of(store, name, subject):
                found.files.append(name)
    for name in (n for n in names if n.startswith(f"{HASHES_FOLDER}/{data.dataset}-")):
        tree = _read_tree(store, name)
        if tree.get("root") in found.roots and isinstance(tree.get("subjects"), dict):
            found.subjects |= set(tree["subjects"])
            if subject in tree["subjects"]:
                found.hashes.append(name)
    # Those of `data.root` last: where this is cut off before, they still lead to the others.
    found.indexes.sort(key=lambda folder: _get_root(indexes[folder]) == data.root)
    found.subjects.discard("")
    return found


def list_locks(store: Store, data: DataConfig) -> list[str]:
    """List the locks of all jobs that write shards of a kind of data set."""
    names = [n for n in store.list_files() if n.startswith(f"{data.dataset}-")]
    return sorted({n.removesuffix(".lease") for n in names if PurePosixPath(n).name in (LOCK, f"{LOCK}.lease")})


def delete_shard_holdings(store: Store, found: ShardHoldings, subject: str) -> None:
    """Delete what was found, so that what is cut off leaves nothing to a reader and is found again.

    Pages and hashes are found by the rows of indexes, and go before them; then the rows, without which shards count no
    more.
    """
    pages = [name for name in found.files if name.endswith(".html")]
    _delete_files(store, pages)
    for name in found.hashes:
        tree = store.read_json(name)
        tree["subjects"].pop(subject, None)
        store.write_json(name, tree)
    for folder in found.indexes:
        _rewrite_index(store, folder, subject)
    _delete_files(store, [name for name in found.files if name not in pages])
    if store.is_local:  # what killed jobs have left half written
        for place in {name.split("/")[0] for name in (*found.files, *found.indexes)}:
            for path in Path(store.resolve_path(place)).rglob(f".{glob.escape(subject)}-*{PARTIAL}"):
                path.unlink(missing_ok=True)


def _delete_files(store: Store, names: list[str]) -> None:
    for name in names:
        if store.exists(name):
            store.delete(name)


def _rewrite_index(store: Store, folder: str, subject: str) -> None:
    # The index last: its rows lead to the other files.
    for name in sorted(store.list_files(folder), key=lambda name: PurePosixPath(name).name == INDEX_FILE):
        if not name.endswith(".json") or str(PurePosixPath(name).parent) != folder:
            continue
        tree = _read_tree(store, name)
        for rows in ("shards", "problems"):
            if rows in tree:
                tree[rows] = [row for row in tree[rows] if row.get("subject") != subject]
        data = tree.get("data")
        if isinstance(data, dict) and subject in data.get("subjects", ()):
            data["subjects"] = [one for one in data["subjects"] if one != subject]
        if "shards" in tree and not tree["shards"]:
            store.delete(name)  # of nobody: as if it had never been made
        else:
            store.write_json(name, tree)


def _read_tree(store: Store, name: str) -> dict[str, Any]:
    """Read JSON of ours; an empty tree where it was damaged."""
    try:
        tree = store.read_json(name)
    except StorageError:
        raise
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _get_root(tree: dict[str, Any]) -> str:
    data = tree.get("data")
    return str(data.get("root", "")) if isinstance(data, dict) else ""


def _list_shards(folder: str, tree: dict[str, Any], subject: str) -> set[str]:
    """List the shards of a subject in an index, by name in the store."""
    place = folder.split("/")[0]
    return {f"{place}/{s['file']}" for s in tree.get("shards", []) if s.get("subject") == subject and s.get("file")}


def _is_index(name: str) -> bool:
    """Tell whether a file is an index: of a data set, or, as earlier versions had it, of a folder of shards."""
    parts = PurePosixPath(name).parts
    return parts[-1] == INDEX_FILE and (len(parts) == 2 or (len(parts) == 4 and parts[1] == INDEXES_FOLDER))


def _is_shard_of(store: Store, name: str, subject: str) -> bool:
    """Tell whether a shard or a record that is named `<subject>-...` is theirs: another may be called `<subject>-2`."""
    place, _, file = name.split("/", 2)
    record = f"{place}/records/{PurePosixPath(file).stem}.json"
    if store.exists(record):
        found = _read_tree(store, record).get("subject")
        if isinstance(found, str):
            return is_of_subject(found, subject)
    return not name.endswith(".parquet") or _read_subject(store, name) in (subject, "")


def _read_subject(store: Store, name: str) -> str:
    """Read whose a shard is; empty where it cannot be read."""
    import pyarrow as pa

    from eav_ray.data.io.parquet import ARROW_READ_ERRORS, read_parquet_table

    try:
        column = read_parquet_table(pa.BufferReader(store.read(name)), ["subject"]).column("subject")
        return str(column[0]) if len(column) else ""
    except ARROW_READ_ERRORS:
        return ""
