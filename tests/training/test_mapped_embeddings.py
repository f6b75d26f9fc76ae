"""Embeddings are mapped from the disk, and are bit for bit what was stored."""

import multiprocessing as mp
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import NodeCache, Store
from eav_ray.training.embeddings import commit_embeddings, write_embedding_part
from eav_ray.training.mapped_embeddings import open_embeddings
from tests.helpers.node_caches import measure_opening

TOKENS, WIDTH = 40, 64
TIMES = torch.linspace(0, 4.9, TOKENS)


def write_parts(store: Store, *sizes: int) -> dict[str, np.ndarray]:
    """Write a part of each size, of noise; returns all arrays."""
    rng, parts = np.random.default_rng(0), []
    for number, size in enumerate(sizes):
        arrays = {
            "tokens": rng.standard_normal((size, TOKENS, WIDTH)).astype(np.float32),
            "mask": rng.integers(0, 2, (size, TOKENS)).astype(np.uint8),
            "pooled": rng.standard_normal((size, WIDTH)).astype(np.float32),
            "logits": rng.standard_normal((size, 5)).astype(np.float32),
        }
        ids = {"subject": [f"p{number}"] * size, "recording": ["0"] * size, "window": list(range(size))}
        tensors = {name: pa.FixedShapeTensorArray.from_numpy_ndarray(values) for name, values in arrays.items()}
        write_embedding_part(store, "e", "a", f"{number:04d}", pa.table(ids | tensors))
        parts.append(arrays)
    commit_embeddings(store, "e", "a", TIMES)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    expected = write_parts(store, 7, 70, 33)
    cache = NodeCache(tmp_path / "cache", 1)
    found = open_embeddings(store, "e/a", cache)
    for name, values in expected.items():
        assert found.arrays[name].dtype == values.dtype and found.arrays[name].tobytes() == values.tobytes()
    assert torch.equal(torch.tensor(found.times_s), TIMES)
    assert found.windows == [(f"p{n}", "0", k) for n, size in enumerate((7, 70, 33)) for k in range(size)]
    # Nothing but COMMIT is read again.
    for name in store.list_files("e"):
        if not name.endswith("COMMIT"):
            Path(store.resolve_path(name)).unlink()
    again = open_embeddings(store, "e/a", cache)
    assert all(np.array_equal(again.arrays[name], values) for name, values in expected.items())


def test_what_was_made_anew_is_not_taken_for_what_was_there(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "results"), NodeCache(tmp_path / "cache", 1)
    write_parts(store, 3)
    assert len(open_embeddings(store, "e/a", cache).windows) == 3
    store.delete("e")
    write_parts(store, 4)
    assert len(open_embeddings(store, "e/a", cache).windows) == 4


def test_opening_takes_no_memory_of_the_size_of_the_arrays(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    write_parts(store, *[1024] * 14)
    arguments = (str(tmp_path / "results"), "e/a", str(tmp_path / "cache"))
    NodeCache(tmp_path / "cache", 1)
    for _ in range(2):  # the process that fetches them, and one that finds them
        process = mp.get_context("spawn").Process(target=measure_opening, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == 0


def test_a_cache_without_room_is_a_config_error_and_keeps_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    write_parts(store, 64)
    with pytest.raises(ConfigError, match=r"raise store\.cache_gb"):
        open_embeddings(store, "e/a", NodeCache(tmp_path / "cache", 1e-4))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_damaged_file_of_the_cache_is_named_and_a_missing_one_made_anew(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "results"), NodeCache(tmp_path / "cache", 1)
    write_parts(store, 3)
    open_embeddings(store, "e/a", cache)
    (folder,) = (tmp_path / "cache").glob("*.embeddings")
    (folder / "tokens.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read as cached embeddings .* delete it, it is made anew"):
        open_embeddings(store, "e/a", cache)
    (folder / "tokens.npy").unlink()  # as its line says
    assert open_embeddings(store, "e/a", cache).arrays["tokens"].shape == (3, TOKENS, WIDTH)
