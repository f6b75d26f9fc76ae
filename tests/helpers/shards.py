"""Small shards of noise, and the rows that they were made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eav_ray.config import EEGPreprocessing, ModalityName, Preprocessing, VideoPreprocessing
from eav_ray.data.shards.index import ShardFile, ShardIndex
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import build_window_table, encode_parquet
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.storage import Store, sha256

PROFILE = Preprocessing(
    window_s=1, eeg=EEGPreprocessing(hz=50, high_hz=20.0), video=VideoPreprocessing(fps=2, size=4, codec="raw")
)
CHANNELS = 3
MODALITIES: tuple[ModalityName, ...] = ("audio", "eeg", "video")
SCHEMA = make_schema(PROFILE, CHANNELS, MODALITIES)


def make_rows(n: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"subject": f"p{seed}", "recording": f"{i // 4}", "window": i % 4, "label": i % 5, "task": "speaking"}
        | {"order": i // 4, "eeg_bad_channels": i % 2, "audio_db": -20.0, "audio_clipped": 0.0}
        | {"video_luma": 100.0, "video_repeated": 0.5, "video_faceless": None}
        | {"audio": rng.uniform(-1, 1, 16000).astype(np.float32), "has_audio": True, "audio_seconds": 1.0}
        | {"eeg": rng.normal(0, 50, (CHANNELS, 50)).astype(np.float32), "has_eeg": i % 3 > 0, "eeg_seconds": 1.0}
        | {"video": rng.integers(0, 256, (2, 4, 4, 3)).astype(np.uint8), "has_video": True, "video_seconds": 0.5}
        for i in range(n)
    ]


class Shards:
    """Three shards in a store, and the rows they were made of."""

    def __init__(self, folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
        self.store = Store(folder)
        self.parts = [make_rows(5 + seed, seed) for seed in seeds]
        self.rows = [row for part in self.parts for row in part]
        self.files = [
            self.put(f"p{s}.parquet", build_window_table(p, SCHEMA)) for s, p in zip(seeds, self.parts, strict=True)
        ]

    def put(self, name: str, table: pa.Table) -> ShardFile:
        data = encode_parquet(table)
        self.store.write(name, data)
        return ShardFile(name, sha256(data), table.num_rows)

    @property
    def index(self) -> ShardIndex:
        return ShardIndex("key", tuple("abcde"), MODALITIES, CHANNELS, tuple(self.files), {})

    def windows(self, cache: Path, cache_gb: float = 1.0) -> WindowCache:
        return WindowCache(self.store, self.index, cache=cache, cache_gb=cache_gb)
