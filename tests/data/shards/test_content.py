"""Files are known by what they hold; what has no end is not read."""

import os
from pathlib import Path

import pytest

from eav_ray.config import DataConfig
from eav_ray.data.shards.content import ContentHashes, name_hashes, read_hashes
from eav_ray.storage import Store


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_that_a_header_names_is_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.vhdr").write_text(f"Brain Vision Data Exchange Header File\n[Common Infos]\nDataFile={name}\n")
    header, data = ContentHashes().get_with_companions(str(tmp_path / "a.vhdr"))
    assert header.sha256 and data.path == str(tmp_path / name) and data.sha256 == ""


@pytest.mark.parametrize("entry", ['{"a.wav": [[Infinity], "0", []]}', '{"a.wav": 5}', "[" * 100_000])
def test_what_is_remembered_is_made_anew_where_it_was_damaged(tmp_path: Path, entry: str) -> None:
    store, data = Store(tmp_path), DataConfig()
    store.write(name_hashes(data), f'{{"format": 1, "subjects": {{"p0": {entry}}}}}'.encode())
    assert read_hashes(store, data) == {}
