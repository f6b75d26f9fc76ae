"""Whatever the bytes of a file are, a reader gives what it promises or one of our errors, and it ends.

`make chaos` runs each property on many more files.
"""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet_files
import pytest
import scipy.io
import soundfile
from hypothesis import given

from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.io import audio, video
from eav_ray.data.io import matlab as io_matlab
from eav_ray.data.shards.index import INDEX_FILE, ShardIndex, read_index
from eav_ray.data.shards.tables import decode_parquet, encode_parquet
from eav_ray.data.synthetic.render_face import encode_video
from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import Store
from tests.helpers.damage import DAMAGE, Change, several
from tests.helpers.speech import write_film


@cache
def sound(suffix: str, subtype: str) -> bytes:
    sink = io.BytesIO()
    x_T = 0.3 * np.sin(np.arange(4000) / 9)
    soundfile.write(sink, np.stack([x_T, x_T], axis=1), 22_050, format=suffix, subtype=subtype)
    return sink.getvalue()


@cache
def film() -> bytes:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.mp4"
        encode_video(path, (rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(12)), size=(64, 48), fps=10)
        return path.read_bytes()


@cache
def matlab(kind: str) -> bytes:
    values = np.random.default_rng(0).normal(size=(40, 30, 3)).astype(np.float32)
    sink = io.BytesIO()
    if kind == "7.3":
        with h5py.File(sink, "w") as file:
            file.create_dataset("seg", data=values.T, compression="gzip").attrs["MATLAB_class"] = np.bytes_("single")
        return sink.getvalue()
    scipy.io.savemat(sink, {"seg": values}, do_compression=kind == "compressed")
    return sink.getvalue()


@cache
def parquet() -> bytes:
    tensor = pa.fixed_shape_tensor(pa.float32(), (3, 8))
    flat = pa.array(np.random.default_rng(0).normal(size=240).astype(np.float32))
    eeg = pa.ExtensionArray.from_storage(tensor, pa.FixedSizeListArray.from_arrays(flat, 24))
    return encode_parquet(pa.table({"subject": ["p1"] * 10, "window": range(10), "eeg": eeg}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def ours(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (DataError, ConfigError) as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.mark.parametrize(("suffix", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")])
@given(damage=DAMAGE)
def test_sound(folder: Path, suffix: str, subtype: str, damage: list[Change]) -> None:
    path = folder / f"a.{suffix.lower()}"
    path.write_bytes(several(sound(suffix, subtype), damage))
    x_T = ours(lambda: audio.read_audio(path, 16_000, timeout_s=10))
    assert x_T is None or (x_T.ndim == 1 and x_T.size and np.isfinite(x_T).all() and np.abs(x_T).max() <= 1)


@given(damage=DAMAGE)
def test_film(folder: Path, damage: list[Change]) -> None:
    path = folder / "a.mp4"
    path.write_bytes(several(film(), damage))
    found = ours(lambda: video.read_video(path, 5, 16, timeout_s=10))
    assert found is None or (found.frames.shape[1:] == (16, 16, 3) and 0 < found.duration_s <= 3600)


@cache
def film_with_sound(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"a{suffix}"
        write_film(path, 0.3 * np.sin(np.arange(22_050) / 9), 44_100, seconds=0.5, fps=10)
        return path.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".flv"])
@given(damage=DAMAGE)
def test_sound_of_a_film(folder: Path, suffix: str, damage: list[Change]) -> None:
    path = folder / f"b{suffix}"
    path.write_bytes(several(film_with_sound(suffix), damage))
    x_T = ours(lambda: audio.read_audio(path, 16_000, timeout_s=10))
    assert x_T is None or (x_T.ndim == 1 and x_T.size and np.isfinite(x_T).all() and np.abs(x_T).max() <= 1)


@pytest.mark.parametrize("kind", ["plain", "compressed", "7.3"])
@given(damage=DAMAGE)
def test_matlab(folder: Path, kind: str, damage: list[Change]) -> None:
    path = folder / "a.mat"
    path.write_bytes(several(matlab(kind), damage))
    shapes = ours(lambda: io_matlab.read_array_shapes(path, ["seg"])) or {}
    for name, shape in shapes.items():
        values = ours(lambda name=name, shape=shape: io_matlab.read_array(path, name, shape))
        assert values is None or (values.shape == shape and values.dtype.kind in "fiu")


@given(damage=DAMAGE)
def test_shard(damage: list[Change]) -> None:
    table = ours(lambda: decode_parquet(several(parquet(), damage), name="x"))
    assert table is None or {len(column) for column in table.columns} <= {table.num_rows}


@given(damage=DAMAGE)
def test_index(folder: Path, damage: list[Change]) -> None:
    text = json.dumps(
        {
            "format": 1,
            "key": "k",
            "classes": ["a", "b"],
            "modalities": ["eeg"],
            "eeg_channels": 30,
            "versions": {"eav-ray": "1"},
        }
        | {"shards": [{"file": "shards/a.parquet", "sha256": "0" * 64, "rows": 3, "subject": "subject1"}]}
    )
    (folder / INDEX_FILE).write_bytes(several(text.encode(), damage))
    index = ours(lambda: read_index(Store(folder)))
    assert index is None or isinstance(index, ShardIndex)
    for shard in index.shards if index else ():
        assert not shard.file.startswith("/") and ".." not in shard.file.split("/")


@given(damage=DAMAGE)
def test_table(folder: Path, damage: list[Change]) -> None:
    text = "subject,recording,label,audio\np1,r1,calm,a.wav\np1,r2,angry,b.wav\np2,r1,calm,\n"
    (folder / "a.csv").write_bytes(several(text.encode(), damage))
    listing = ours(lambda: RecordingsTable(str(folder / "a.csv")).scan())
    assert listing is None or all(r.subject and r.recording for r in listing.recordings)


@cache
def recordings_parquet() -> bytes:
    """Columns of other types than text too, as other programs write them."""
    columns: dict[str, Any] = {"subject": ["p1", "p1", "p2"], "recording": ["r1", "r2", "r1"], "label": [0, 1, 0]}
    columns |= {"audio": ["a.wav", None, "b.wav"], "task": pa.array([0, 1, 2], pa.timestamp("ns"))}
    sink = io.BytesIO()
    parquet_files.write_table(pa.table(columns), sink, compression="none", use_dictionary=False)
    return sink.getvalue()


@given(damage=DAMAGE)
def test_table_in_parquet(folder: Path, damage: list[Change]) -> None:
    (folder / "a.parquet").write_bytes(several(recordings_parquet(), damage))
    listing = ours(lambda: RecordingsTable(str(folder / "a.parquet")).scan())
    assert listing is None or all(r.subject and r.recording for r in listing.recordings)
