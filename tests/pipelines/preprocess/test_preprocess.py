"""What a second preprocessing job does again, and what it must not mix."""

from dataclasses import replace
from pathlib import Path

import pytest

from eav_ray.config import Experiment, Preprocessing, override
from eav_ray.data.io import face_crop
from eav_ray.data.preprocessing import eeg_ica
from eav_ray.data.preprocessing.extras import require_preprocessing_extras
from eav_ray.data.shards.index import SHARDS_FORMAT
from eav_ray.data.shards.location import open_shard_store, select_content_settings
from eav_ray.distributed import ray_workarounds
from eav_ray.errors import ConfigError
from eav_ray.pipelines.preprocess.chunks import Chunk
from eav_ray.pipelines.preprocess.preprocess import is_chunk_done
from eav_ray.storage import Store

PROBLEM = {"subject": "p1", "recording": "001", "file": "a.mp4", "reason": "takes over 120 s to decode"}


@pytest.mark.parametrize(
    ("record", "shard", "done"),
    [
        (None, False, False),
        ({"rows": 4, "file": "shards/c.parquet", "problems": []}, True, True),
        ({"rows": 4, "file": "shards/c.parquet", "problems": []}, False, False),
        ({"rows": 4, "file": "shards/c.parquet", "problems": [PROBLEM]}, True, False),  # more time may help
        ({"rows": 0, "file": "", "problems": []}, False, True),
    ],
)
def test_a_chunk_is_done_if_it_has_a_record_without_problems_and_its_shard(
    tmp_path: Path, record: dict | None, shard: bool, done: bool
) -> None:
    store = Store(tmp_path)
    if record is not None:
        store.write_json("records/c.json", {"format": SHARDS_FORMAT} | record)
    if shard:
        store.write("shards/c.parquet", b"x")
    assert is_chunk_done(store, Chunk("c", ())) is done


CHANGES = [
    {"preprocessing.eeg.kind": "official", "split.access": "unlabelled_block"},
    {"preprocessing.features": {"face": {"width": 3}}},
    {"preprocessing.eeg.artefacts": "blinks"},
    {"preprocessing.eeg.notch_hz": 60.0},
    {"preprocessing.video.crop": "face"},
    {"preprocessing.video.quality": 90},
    {"preprocessing.window_s": 4, "model.video.frames": 20},
    {"preprocessing.on_bad": "drop"},
    {"data.tasks": ["speaking", "listening"]},
]


def test_shards_of_different_windows_never_share_a_folder() -> None:
    base = override(Experiment(), {"data.root": "here"})
    stores = [open_shard_store(e).root for e in (base, *(override(base, change) for change in CHANGES))]
    assert len(set(stores)) == len(stores)


@pytest.mark.parametrize("change", [{"recordings_per_shard": 7}, {"file_timeout_s": 5}, {"on_bad": "fail"}])
def test_what_leaves_windows_as_they_are_leaves_shards_where_they_are(change: dict) -> None:
    assert select_content_settings(replace(Preprocessing(), **change)) == select_content_settings(Preprocessing())


def test_optional_packages_are_asked_for_only_where_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ConfigError("not installed")

    monkeypatch.setattr(face_crop, "require_face_detector", missing)
    monkeypatch.setattr(eeg_ica, "require_ica_packages", missing)
    require_preprocessing_extras(Experiment())
    for change in ({"preprocessing.video.crop": "face"}, {"preprocessing.eeg.artefacts": "all"}):
        with pytest.raises(ConfigError, match="not installed"):
            require_preprocessing_extras(override(Experiment(), change))
        require_preprocessing_extras(override(Experiment(), change | {"data.modalities": ["audio"]}))


def test_the_ray_that_is_pinned_has_the_interval_that_is_shortened() -> None:
    """Where a newer Ray has it no more, measure again whether the second core waits (benchmarks/preprocess.py)."""
    from ray.data._internal.execution.resource_manager import ResourceManager

    assert ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S in (1, 0.1)
    ray_workarounds.shorten_ray_data_startup()
    assert ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == 0.1
