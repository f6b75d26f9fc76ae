"""What preprocessing writes is what training reads, bit for bit, in any order; a damaged shard is named."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eav_ray.config import DataConfig, EEGPreprocessing, VideoPreprocessing
from eav_ray.data.io import jpeg
from eav_ray.data.shards.index import (
    INDEX_FILE,
    SHARDS_FORMAT,
    ShardFile,
    ShardIndex,
    read_index,
    read_shard,
    write_index,
)
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import build_window_table, decode_parquet, encode_parquet, encode_window
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.shards.writer import ShardWriter
from eav_ray.data.splits import list_labeled_recordings
from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import HashingWriter, Store, sha256
from tests.helpers.shards import CHANNELS, MODALITIES, PROFILE, SCHEMA, Shards, make_rows

ARRAYS = {"audio": (16000,), "eeg": (CHANNELS, 50), "video": (2, 4, 4, 3)}


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path / "shards")


def test_a_round_trip_through_parquet_keeps_shape_type_and_every_bit() -> None:
    made = make_rows(70, 0)  # more than one row group
    table = decode_parquet(encode_parquet(build_window_table(made, SCHEMA)), name="x")
    assert table.schema.equals(SCHEMA)
    for name, shape in ARRAYS.items():
        values = table.column(name).combine_chunks().to_numpy_ndarray()
        expected = np.stack([row[name] for row in made])
        assert values.shape == (70, *shape)
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
    for name in ("subject", "recording", "window", "label", "task", "order", "has_eeg", "video_seconds"):
        assert table.column(name).to_pylist() == [row[name] for row in made]


def test_any_program_can_read_the_shards_without_us(shards: Shards, tmp_path: Path) -> None:
    plain = pq.read_table(shards.store.resolve_path("p0.parquet"))
    assert plain.column("eeg").type == pa.fixed_shape_tensor(pa.float32(), (CHANNELS, 50))


def test_neither_ray_nor_torch_is_needed() -> None:
    code = "import sys, eav_ray.data.shards.window_cache; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_window_of_another_shape_is_refused() -> None:
    made = make_rows(2, 0)
    for row in made:
        row["eeg"] = row["eeg"][:, :-1]
    with pytest.raises(DataError, match="eeg has shape"):
        build_window_table(made, SCHEMA)


@pytest.mark.parametrize("n_rows", [3, 70])  # written when the shard ends, and before
def test_a_disk_that_is_full_is_named_and_keeps_no_part(
    n_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HashingWriter, "write", fail)
    store = Store(tmp_path)
    shard = ShardWriter(store, "shards/one.parquet", SCHEMA)
    expected = f"cannot write {tmp_path}/shards/one.parquet: No space left on device; nothing was changed"
    with pytest.raises(DataError, match=expected), shard:
        shard.add(make_rows(n_rows, 0))
    assert shard.name == "" and os.listdir(tmp_path / "shards") == []


def test_an_error_of_who_makes_windows_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="its own"), ShardWriter(Store(tmp_path), "one.parquet", SCHEMA) as shard:
        shard.add(make_rows(70, 0))
        raise KeyError("its own")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 100, -100, -8, -4, -1])
def test_a_shard_with_its_footer_cut_is_named(shards: Shards, cut: int) -> None:
    whole = shards.store.read("p1.parquet")
    with pytest.raises(DataError, match="shard p1.parquet cannot be read"):
        decode_parquet(whole[:cut], name="p1.parquet")
    shards.store.write("p1.parquet", whole[:cut])
    with pytest.raises(DataError, match="p1.parquet is damaged"):
        read_shard(shards.store, shards.files[1])


@pytest.mark.parametrize("seed", range(8))
def test_a_shard_with_one_flipped_byte_is_named(shards: Shards, seed: int, tmp_path: Path) -> None:
    data = bytearray(shards.store.read("p1.parquet"))
    data[np.random.default_rng(seed).integers(len(data))] ^= 0x10
    shards.store.write("p1.parquet", bytes(data))
    with pytest.raises(DataError, match="p1.parquet is damaged"):
        shards.windows(tmp_path / "cache")


@pytest.mark.parametrize("lacking", ["label", "has_eeg", "video"])
def test_a_shard_that_lacks_a_column_is_named(shards: Shards, lacking: str, tmp_path: Path) -> None:
    shards.files[1] = shards.put("p1.parquet", build_window_table(shards.parts[1], SCHEMA).drop_columns([lacking]))
    with pytest.raises(DataError, match="p1.parquet.*preprocess again"):
        shards.windows(tmp_path / "cache")


def test_a_shard_of_another_profile_is_named(shards: Shards, tmp_path: Path) -> None:
    other = replace(PROFILE, eeg=EEGPreprocessing(hz=100, high_hz=20.0))
    made = [row | {"eeg": np.zeros((CHANNELS, 100), np.float32)} for row in shards.parts[1]]
    shards.files[1] = shards.put("p1.parquet", build_window_table(made, make_schema(other, CHANNELS, MODALITIES)))
    with pytest.raises(DataError, match="p1.parquet.*preprocess again"):
        shards.windows(tmp_path / "cache")


def test_a_shard_without_rows_is_named(shards: Shards, tmp_path: Path) -> None:
    shards.files[1] = shards.put("p1.parquet", SCHEMA.empty_table())
    with pytest.raises(DataError, match="p1.parquet.*no rows"):
        shards.windows(tmp_path / "cache")


def test_a_shard_with_other_rows_than_listed_is_named(shards: Shards) -> None:
    with pytest.raises(DataError, match="p1.parquet has 6 rows.* says 7"):
        read_shard(shards.store, replace(shards.files[1], rows=7))


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"shards": 1}', "null", '{"key": "k", "shards": [{"file": "../x", "sha256": "", "rows": 1}]}', "{"],
)
def test_an_index_that_is_damaged_or_leads_outside_is_a_data_error(tmp_path: Path, index: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(DataError, match="run `eav preprocess`"):
        read_index(store)
    store.write(INDEX_FILE, index.encode())
    with pytest.raises(DataError):
        read_index(store)


def test_shards_of_another_format_are_refused_in_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    index = ShardIndex("k", ("a", "b"), ("eeg",), 30, (), {})
    write_index(store, index)
    assert read_index(store) == index
    store.write_json(INDEX_FILE, store.read_json(INDEX_FILE) | {"format": SHARDS_FORMAT + 1})
    formats = f"has the format {SHARDS_FORMAT + 1}, and this version reads format {SHARDS_FORMAT}"
    with pytest.raises(DataError, match=f"index.json {formats}; preprocess again"):
        read_index(store)


def test_a_window_is_the_row_of_its_number_in_any_order(shards: Shards, tmp_path: Path) -> None:
    windows = shards.windows(tmp_path / "cache")
    assert len(windows) == len(shards.rows) == 18
    rng = np.random.default_rng(0)
    for size in (1, 5, 40):
        order = rng.integers(0, len(windows), size)
        for name in (*ARRAYS, "label"):
            values = windows.get(order, name)
            np.testing.assert_array_equal(values, np.stack([shards.rows[i][name] for i in order]))
    assert windows.ids["id"].tolist() == [f"{r['subject']}/{r['recording']}" for r in shards.rows]
    expected = [i for i, r in enumerate(shards.rows) if (r["subject"], r["recording"]) in (("p0", "1"), ("p2", "0"))]
    assert windows.find_rows(("p2/0", "p0/1")).tolist() == expected


def test_a_second_reader_finds_the_cache_and_needs_no_shard(shards: Shards, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = shards.windows(cache)
    for file in shards.files:
        Path(shards.store.resolve_path(file.file)).unlink()
    second = shards.windows(cache)
    np.testing.assert_array_equal(first.get(np.arange(18), "eeg"), second.get(np.arange(18), "eeg"))
    assert len(list(cache.glob("*.arrow"))) == len(shards.files)


def gigabytes(cache: Path, share: float) -> float:
    return share * sum(p.stat().st_size for p in cache.glob("*.arrow")) / 2**30


def test_the_cap_evicts_what_is_oldest_but_never_the_readers_own(shards: Shards, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shards.windows(cache)
    own = {f"{f.sha256}.arrow" for f in shards.files}
    other = Shards(tmp_path / "other", seeds=(3, 4))
    other.windows(cache, gigabytes(cache, 1.5))
    kept = {p.name for p in cache.iterdir()}
    assert {f"{f.sha256}.arrow" for f in other.files} <= kept
    assert not own <= kept
    np.testing.assert_array_equal(shards.windows(cache).get(np.array([0]), "eeg")[0], shards.rows[0]["eeg"])


def test_a_cap_below_one_experiment_is_a_config_error(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raise store.cache_gb"):
        shards.windows(tmp_path / "cache", 1e-4)


def test_jpeg_frames_come_back_in_any_order_as_close_as_jpeg_is(tmp_path: Path) -> None:
    """Mean absolute difference in grey levels, of smooth frames at quality 95; no video comes back as exact zeros."""
    preprocessing = replace(PROFILE, video=VideoPreprocessing(fps=2, size=32))
    of = make_schema(preprocessing, CHANNELS, MODALITIES)
    made = make_rows(6, 0)
    ramp = np.linspace(0, 255, 32)
    for i, row in enumerate(made):
        picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 40.0 * i), -1).astype(np.uint8)
        row["video"] = np.zeros((2, 32, 32, 3), np.uint8) if i == 3 else np.stack([picture, picture.transpose(1, 0, 2)])
    store = Store(tmp_path / "shards")
    data = encode_parquet(build_window_table([encode_window(row, preprocessing) for row in made], of))
    store.write("a.parquet", data)
    index = ShardIndex("key", tuple("abcde"), MODALITIES, CHANNELS, (ShardFile("a.parquet", sha256(data), 6),), {})
    found = WindowCache(store, index, cache=tmp_path / "cache", cache_gb=1).get(np.array([4, 0, 3]), "video")
    assert found.shape == (3, 2, 32, 32, 3) and found.dtype == np.uint8
    for got, number in zip(found, (4, 0, 3), strict=True):
        assert np.abs(got.astype(int) - made[number]["video"]).mean() < 1.5
    assert not found[2].any()


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_what_a_covered_camera_saw_is_no_signal_that_could_be_known_again(tmp_path: Path, codec: str) -> None:
    preprocessing = replace(PROFILE, video=replace(PROFILE.video, size=32, codec=codec))  # type: ignore[arg-type]
    made, rng = make_rows(4, 0), np.random.default_rng(0)
    for row, level in zip(made, (0, 7, None, None), strict=True):  # black, grey, and two equal scenes
        still = np.full((1, 32, 32, 3), level or 0, np.uint8)
        scene = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
        row["video"] = scene if level is None else np.repeat(still, 2, 0)
        row["eeg"] = rng.normal(0, 50, (CHANNELS, 50)).astype(np.float32)
    store = Store(tmp_path / "shards")
    data = encode_parquet(
        build_window_table(
            [encode_window(row, preprocessing) for row in made], make_schema(preprocessing, CHANNELS, MODALITIES)
        )
    )
    store.write("a.parquet", data)
    index = ShardIndex("key", tuple("abcde"), MODALITIES, CHANNELS, (ShardFile("a.parquet", sha256(data), 4),), {})
    found = WindowCache(store, index, cache=tmp_path / "cache", cache_gb=1).compute_digests("video")
    assert found[0] == found[1] == "" and found[2] == found[3] != ""


@pytest.mark.parametrize("file", [b"no picture", b"\x89PNG\r\n", b"\xff\xd8\xff\xe0"])
def test_a_stored_frame_that_is_no_jpeg_is_refused(file: bytes) -> None:
    with pytest.raises(DataError, match="not a JPEG"):
        jpeg.decode_frames([[file]], (1, 4, 4, 3))


def test_permuted_labels_do_not_depend_on_which_recordings_a_process_may_see(tmp_path: Path) -> None:
    """Two people of two shards each; the first recording of each shard has no audio."""
    made, files = Shards(tmp_path / "shards", ()), []
    for subject in ("p0", "p1"):
        for part in range(2):
            recordings = [
                row | {"subject": subject, "recording": f"{part}{r}", "window": 0, "label": r % 5, "has_audio": r > 0}
                for r, row in enumerate(make_rows(10, part))
            ]
            files.append(
                replace(made.put(f"{subject}{part}.parquet", build_window_table(recordings, SCHEMA)), subject=subject)
            )
    made.files = files
    whole = made.windows(tmp_path / "cache")
    data = DataConfig(modalities=MODALITIES, labels="permuted")
    expected = {i.id: i.label for i in list_labeled_recordings(whole.ids, data, 0)}
    only = ("p1/00", "p1/03", "p1/12", "p1/19")
    few = WindowCache(made.store, made.index, cache=tmp_path / "cache", cache_gb=1, allowed_recordings=only)
    for modalities in (MODALITIES, ("audio",)):
        for windows in (whole, few):
            items = list_labeled_recordings(windows.ids, replace(data, modalities=modalities), 0)
            assert items and {i.id: i.label for i in items} == {i.id: expected[i.id] for i in items}


def test_a_shard_written_in_pieces_is_the_one_written_at_once(tmp_path: Path) -> None:
    store, made = Store(tmp_path), make_rows(75, 0)
    with ShardWriter(store, "a.parquet", SCHEMA) as writer:
        for start in range(0, 75, 4):
            writer.add(made[start : start + 4])
        assert not store.exists("a.parquet")
    shard = ShardFile(writer.name, writer.sha256, writer.rows)
    assert (shard.file, shard.rows) == ("a.parquet", 75)
    assert read_shard(store, shard).combine_chunks().equals(build_window_table(made, SCHEMA).combine_chunks())
    assert pq.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups >= 2


def test_a_shard_without_windows_is_no_file(tmp_path: Path) -> None:
    with ShardWriter(Store(tmp_path), "a.parquet", SCHEMA) as writer:
        writer.add([])
    assert (writer.name, writer.sha256, writer.rows) == ("", "", 0) and list(tmp_path.iterdir()) == []


def test_a_shard_that_breaks_off_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ShardWriter(Store(tmp_path), "a.parquet", SCHEMA) as writer:
        writer.add(make_rows(40, 0))
        raise ZeroDivisionError
    assert writer.name == "" and list(tmp_path.iterdir()) == []
