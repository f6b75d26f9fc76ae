"""The embedding cache: what a frozen encoder makes of windows, in Parquet, under a key that names all it depends on.

Under the key, each attempt has a folder of its own. `current.json` names the one that counts; it is written once.

The key holds the encoder's own key, and that one the set of recordings it was trained on: an encoder that saw a person
can never serve a fold that tests on that person, because that fold asks for another key.
"""

import json
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from eav_ray.config import Precision, digest
from eav_ray.data.shards.tables import encode_parquet
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.errors import DataError, describe_error
from eav_ray.models.classifier import Classifier, HeadClassifier
from eav_ray.storage import Store, check_format
from eav_ray.training.dataloader import (
    Batch,
)
from eav_ray.training.mapped_embeddings import EMBEDDING_ARRAYS, EMBEDDINGS_FORMAT, TIMES, open_embeddings
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.precision import autocast
from eav_ray.training.run_spec import Run

FEATURE_ARRAYS = EMBEDDING_ARRAYS[:-1]  # of an encoder without a head
POINTER = "current.json"


def build_embedding_key(encoder_key: str, recordings: tuple[str, ...]) -> str:
    return f"embeddings/{encoder_key}-{_digest_recordings(recordings)}"


@lru_cache(maxsize=1024)
def _digest_recordings(recordings: tuple[str, ...]) -> str:
    return digest(EMBEDDINGS_FORMAT, sorted(recordings), length=8)


def compute_embeddings(
    model: Classifier | HeadClassifier,
    batches: Iterator[tuple[np.ndarray, Batch]],
    windows: WindowCache,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    arrays: tuple[str, ...] = EMBEDDING_ARRAYS,
) -> pa.Table:
    """One row a window: its id, tokens (N, D) float32, mask (N,), pooled (D,), unimodal logits (classes,).

    Args:
        model: A classifier of one modality, on `device`; or its head, on batches of features.
        precision: What to compute in, as the encoder was trained.
        arrays: `FEATURE_ARRAYS` leaves the logits out.
    """
    (modality,) = model.modalities
    model.eval()
    outputs: dict[str, list[np.ndarray]] = {array: [] for array in EMBEDDING_ARRAYS}
    window_rows: list[np.ndarray] = []
    with torch.no_grad(), autocast(device, precision):
        for rows, batch in batches:
            inputs = {key: x.to(device) for key, x in batch.inputs.items()}
            encoded, logits = model.encode(inputs, batch.present_BM.to(device))
            outputs["tokens"].append(encoded[modality].tokens_BND.float().cpu().numpy())
            outputs["mask"].append(encoded[modality].mask_BN.cpu().numpy().astype(np.uint8))
            outputs["pooled"].append(encoded[modality].pooled_BD.float().cpu().numpy())
            outputs["logits"].append(logits[modality].float().cpu().numpy())
            window_rows.append(rows)
    ids = windows.ids.iloc[np.concatenate(window_rows)]
    columns: dict[str, pa.Array] = {c: pa.array(ids[c].tolist()) for c in WINDOW_COLUMNS}
    for array, parts in ((array, outputs[array]) for array in arrays):
        columns[array] = pa.FixedShapeTensorArray.from_numpy_ndarray(np.concatenate(parts))
    return pa.table(columns)


def write_embedding_part(store: Store, key: str, attempt: str, part: str, table: pa.Table) -> None:
    """Write what one rank, or of one shard, was embedded; what is there stays."""
    store.write_if_missing(build_part_name(key, attempt, part), encode_parquet(table))


def build_part_name(key: str, attempt: str, part: str) -> str:
    return f"{key}/{attempt}/part-{part}.parquet"


def commit_embeddings(store: Store, key: str, attempt: str, times_s: Tensor) -> None:
    """Make the parts of an attempt count, once all are written; unless those of another already do."""
    folder = f"{key}/{attempt}"
    parts = tuple(n.rsplit("/", 1)[1] for n in store.list_files(folder) if n.endswith(".parquet"))
    times = {"format": EMBEDDINGS_FORMAT, "times_s": times_s.tolist()}
    store.commit(folder, {TIMES: json.dumps(times).encode()}, already_written=parts)
    pointer = {"format": EMBEDDINGS_FORMAT, "attempt": attempt}
    store.write_if_missing(f"{key}/{POINTER}", json.dumps(pointer).encode())
    current = find_embeddings(store, key)
    for name in store.list_folders(key):
        if f"{key}/{name}" != current:
            store.delete(f"{key}/{name}")


def has_embeddings(store: Store, key: str) -> bool:
    return store.exists(f"{key}/{POINTER}")


def delete_embeddings(store: Store, key: str) -> None:
    """Delete the embeddings of a key, what names them first."""
    store.delete(f"{key}/{POINTER}")
    store.delete(key)


def find_embeddings(store: Store, key: str) -> str:
    """Find the committed prefix of the embeddings of a key.

    Raises:
        DataError: There are none, or what names them is damaged.
    """
    pointer = store.read_json(f"{key}/{POINTER}")
    path = store.format_path(f"{key}/{POINTER}")
    remedy = f"delete {store.format_path(key)} and train again"
    number, attempt = (pointer.get("format"), pointer.get("attempt")) if isinstance(pointer, dict) else (None, None)
    check_format(number, EMBEDDINGS_FORMAT, path, remedy)
    if not isinstance(attempt, str):
        raise DataError(f"{path} names no attempt; {remedy}")
    return f"{key}/{attempt}"


class EmbeddingSource:
    """Cached embeddings of several encoders, as a source of batches by row number of `WindowCache`.

    Args:
        pooled: Leave the time tokens out, for who does not read them: one token a modality, its pooled features.
        arrays: What the cache holds; `FEATURE_ARRAYS` of encoders without a head. Windows that `windows` does not know
            of are left out.
    """

    def __init__(
        self,
        store: Store,
        keys: dict[str, str],
        windows: WindowCache,
        *,
        pooled: bool = False,
        arrays: tuple[str, ...] = EMBEDDING_ARRAYS,
    ) -> None:
        self.names, self._array_names = sorted(keys), arrays
        self.times_s: dict[str, Tensor] = {}
        self._arrays: dict[str, np.ndarray] = {}
        ids = windows.ids
        row_of_window = {
            key: row for row, key in enumerate(zip(ids["subject"], ids["recording"], ids["window"], strict=True))
        }
        self._present = ids[[f"has_{m}" for m in self.names]].to_numpy()
        self._table_rows = {m: np.full(len(windows), -1) for m in self.names}
        for m in self.names:
            found = open_embeddings(store, find_embeddings(store, keys[m]), windows.node_cache)
            self.times_s[m] = torch.tensor(found.times_s)
            try:
                columns: dict[str, np.ndarray] = {array: found.arrays[array] for array in arrays}
                if pooled:
                    columns |= {"tokens": columns["pooled"][:, None], "mask": np.any(columns["mask"], 1, keepdims=True)}
            except (LookupError, ValueError) as error:
                raise DataError(
                    f"{store.format_path(keys[m])} is damaged ({describe_error(error)}); delete it and train again"
                ) from None
            self._arrays |= {f"{m}.{array}": values for array, values in columns.items()}
            matches = [(row, row_of_window[name]) for row, name in enumerate(found.windows) if name in row_of_window]
            self._table_rows[m][[row for _, row in matches]] = [row for row, _ in matches]

    @property
    def widths(self) -> dict[str, int]:
        return {m: self._arrays[f"{m}.tokens"].shape[-1] for m in self.names}

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = {}
        for m in self.names:
            table_rows = self._table_rows[m][rows]
            if (table_rows < 0).any():
                raise DataError(f"the embedding cache of {m} lacks a window that is needed; delete it and train again")
            for array in self._array_names:
                values = torch.from_numpy(self._arrays[f"{m}.{array}"][table_rows])
                inputs[f"{m}.{array}"] = values.bool() if array == "mask" else values
        return inputs

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._present[rows]


def is_embedded(run: Run, results: Store) -> bool:
    """Whether there are the embeddings that are wanted of a run."""
    return (
        run.kind != "encoder"
        or not run.embedded_recordings
        or has_embeddings(results, build_embedding_key(run.key, run.embedded_recordings))
    )


def get_token_times(model: Classifier) -> Tensor:
    """(N,) seconds: where the tokens of its only encoder lie on the window's clock."""
    (name,) = model.modalities
    times_s = model.encoders[name].times_s
    assert isinstance(times_s, Tensor)
    return times_s
