"""Windows that are to be predicted carry what is true of them, as far as somebody says so."""

import math
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.datasets import registry
from eav_ray.data.recordings import Recording
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.inference.inference_windows import cut_raw_windows, read_shard_windows
from tests.helpers.given_targets import list_targets, read_recordings, write_recordings, write_target_tables
from tests.helpers.in_process_shards import write_shards


def cut(e: Experiment, recordings: tuple[Recording, ...]) -> list[dict[str, Any]]:
    return cut_raw_windows(
        {"unit": 0, "eeg": b"", "eeg_facts": "{}"},
        units=[recordings],
        preprocessing=e.preprocessing,
        modalities=("face",),
        shapes=DataShapes(0, 2),
    )


def collect(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    return {f"{row['subject']}/{row['recording']}": (row["target_0"], row["target_1"]) for row in rows}


@pytest.mark.parametrize("is_known", [False, True])
def test_raw_recordings_have_their_numbers_or_none(tmp_path: Path, is_known: bool) -> None:
    e = load_experiment("fusion", write_target_tables(tmp_path))
    table = read_recordings(tmp_path)
    write_recordings(tmp_path, table if is_known else table[["subject", "recording"]])
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features, needs_truth=False)
    rows = cut(e, listing.recordings)
    assert len(rows) == len(table) and all(row["reason"] == "" for row in rows)
    if is_known:
        assert collect(rows) == list_targets(table)
    else:
        assert all(map(math.isnan, (x for pair in collect(rows).values() for x in pair)))


def test_windows_of_shards_have_their_numbers(tmp_path: Path) -> None:
    e = load_experiment("fusion", write_target_tables(tmp_path))
    write_shards(e)
    dataset = open_dataset(e)
    rows = [
        row
        for number in range(len(dataset.index.shards))
        for row in read_shard_windows(
            {"shard": number},
            files=list(dataset.index.shards),
            shards=dataset.shards,
            experiment=e,
            modalities=("face",),
            n_channels=0,
            channel_order=[],
        )
    ]
    assert collect(rows) == list_targets(read_recordings(tmp_path)) and all(row["reason"] == "" for row in rows)


def test_what_cannot_be_read_has_a_row_like_the_others(tmp_path: Path) -> None:
    e = load_experiment("fusion", write_target_tables(tmp_path))
    lost = Recording("p", "r", 0, "speaking", 0, targets=(1.5, math.nan))
    (row,) = cut(e, (lost,))
    (known,) = cut(e, registry.scan_dataset(e.data, e.preprocessing.features)[1].recordings[:1])
    assert row["reason"] == "it has none of the modalities" and set(row) == set(known)
    assert row["target_0"] == 1.5 and math.isnan(row["target_1"])
