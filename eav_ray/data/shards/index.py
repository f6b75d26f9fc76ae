"""Read the index of a set of shards, and single shards against it."""

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from eav_ray.data.recordings import name_target_columns
from eav_ray.data.shards.schema import check_column_types
from eav_ray.data.shards.tables import decode_parquet
from eav_ray.errors import DataError
from eav_ray.storage import Store, check_format, check_store_name, sha256

INDEX_FILE = "index.json"
SHARDS_FORMAT = 3  # raise when windows come out differently, or the index changes: other shards are not reused


@dataclass(frozen=True)
class ShardFile:
    file: str  # relative to the index
    sha256: str
    rows: int
    subject: str = ""  # whose recordings these are


@dataclass(frozen=True)
class ShardIndex:
    """What preprocessing finished: the shards of one data set and its preprocessing."""

    key: str  # hash of the preprocessing, the data set and its modalities
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    eeg_channels: int
    shards: tuple[ShardFile, ...]
    versions: dict[str, str]
    eeg_channel_names: tuple[str, ...] = ()  # in order, in canonical form
    targets: tuple[str, ...] = ()  # names of the numbers that are predicted; there are no classes then

    @property
    def n_outputs(self) -> int:
        """How many numbers a model gives out: one a class, or one a target."""
        return len(self.targets) or len(self.classes)

    @property
    def target_columns(self) -> list[str]:
        """Columns of the shards that hold the numbers that are predicted, in the order of `targets`."""
        return name_target_columns(len(self.targets))

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Content of all shards; equal for equal data, wherever they lie."""
        return tuple(sorted(shard.sha256 for shard in self.shards))


def write_index(store: Store, index: ShardIndex, facts: dict[str, Any] | None = None, name: str = INDEX_FILE) -> None:
    """Write the index, which makes its shards count.

    Args:
        facts: What else is to be known of them: the settings and the data set that they were made from.
        name: Of the index in the store.
    """
    store.write_json(name, {"format": SHARDS_FORMAT} | asdict(index) | (facts or {}))


def read_index(store: Store, name: str = INDEX_FILE) -> ShardIndex:
    """Open the index of one data set's shards.

    Args:
        name: Of the index in the store.
    Raises:
        DataError: Not preprocessed yet, or damaged.
    """
    if not store.exists(name):
        raise DataError(f"no shards in {store}; run `eav preprocess` with the same experiment first")
    tree = store.read_json(name)
    try:
        check_format(tree.get("format"), SHARDS_FORMAT, store.format_path(name), "preprocess again")
        shards = tuple(
            ShardFile(check_store_name(s["file"]), str(s["sha256"]), int(s["rows"]), str(s["subject"]))
            for s in tree["shards"]
        )
        return ShardIndex(
            key=str(tree["key"]),
            classes=tuple(map(str, tree["classes"])),
            modalities=tuple(map(str, tree["modalities"])),
            eeg_channels=int(tree["eeg_channels"]),
            shards=shards,
            versions={str(k): str(v) for k, v in tree["versions"].items()},
            eeg_channel_names=tuple(map(str, tree["eeg_channel_names"])),
            targets=tuple(map(str, tree.get("targets", ()))),
        )
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{store.format_path(name)} is not an index of shards ({error!r}); preprocess again") from None


def read_shard(store: Store, shard: ShardFile) -> pa.Table:
    """One shard, checked against its hash."""
    data = store.read(shard.file)
    if sha256(data) != shard.sha256:
        raise DataError(
            f"shard {store.format_path(shard.file)} is damaged: not the sha256 of {INDEX_FILE}; delete it and "
            "preprocess again"
        )
    table = decode_parquet(data, name=shard.file)
    if table.num_rows != shard.rows:
        raise DataError(
            f"shard {store.format_path(shard.file)} has {table.num_rows} rows, {INDEX_FILE} says {shard.rows}"
        )
    if not table.num_rows:
        raise DataError(f"shard {store.format_path(shard.file)} has no rows; preprocess again")
    check_column_types(table.schema, shard.file)
    return table
