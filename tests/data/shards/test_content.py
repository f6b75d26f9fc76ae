"""Files are known by what they hold; what has no end is not read."""

import os
from pathlib import Path

import pytest

from eav_ray.data.shards.content import ContentHashes


@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_a_pipe_or_a_device_that_a_header_names_is_not_read(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.vhdr").write_text(f"Brain Vision Data Exchange Header File\n[Common Infos]\nDataFile={name}\n")
    header, data = ContentHashes().get_with_companions(str(tmp_path / "a.vhdr"))
    assert header.sha256 and data.path == str(tmp_path / name) and data.sha256 == ""
