"""What a BrainVision header states that MNE does not hand on: units as they are written, and times of segments."""

import re
from pathlib import Path

from eav_ray.data.io.file_access import is_file
from eav_ray.errors import DataError

MAX_TEXT_BYTES = 2**26
SAMPLE_BYTES = {"INT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}


def read_header_units(path: Path) -> list[tuple[str, str]]:
    """Read the name and the unit of each channel from a header (.vhdr); microvolts where it states none.

    That is what the format says.
    """
    units: dict[int, tuple[str, str]] = {}
    for number, line in re.findall(r"^Ch(\d+)=(.*)$", _read_section(path, "Channel Infos"), re.MULTILINE | re.I):
        parts = [part.strip() for part in line.split(",")]
        units[int(number)] = parts[0].replace(r"\1", ","), (parts[3] if len(parts) > 3 else "") or "uV"
    return [units[number] for number in sorted(units)]


def read_marker_text(path: Path) -> str:
    """Read the marker file of a header (.vhdr), by its stated name, else the header's; empty where there is none."""
    stated = re.search(r"^MarkerFile=(.*)$", _read_text(path), re.MULTILINE | re.IGNORECASE)
    names = [stated[1].strip()] if stated else []
    for file in (*(path.parent / name for name in names if name), path.with_suffix(".vmrk")):
        if is_file(file):
            return _read_text(file)
    return ""


def check_header(path: Path) -> None:
    """Check that a header (.vhdr) is of a recording whose samples are there.

    Raises:
        DataError: It is of an average or of frequencies, names a file that is not there, or counts other channels than
            it describes.
    """
    if _read_field(path, "DataType").upper() not in ("", "TIMEDOMAIN"):
        raise DataError(f"{path} holds no samples over time (DataType={_read_field(path, 'DataType')}); export these")
    if _read_field(path, "Averaged").upper() == "YES":
        raise DataError(f"{path} holds an average over segments and no recording (Averaged=YES); export the recording")
    stated, n_described = _read_field(path, "NumberOfChannels"), len(read_header_units(path))
    if stated.isdecimal() and int(stated) != n_described:
        raise DataError(f"{path} states {stated} channels and describes {n_described}; mend its NumberOfChannels=")
    data = _read_field(path, "DataFile")
    if data and not is_file(path.parent / data):
        raise DataError(
            f"{path} says that its samples are in {data}, which is not there; if it was renamed, correct DataFile= and "
            "MarkerFile= in the header"
        )


def list_joins(path: Path, n_times: int) -> list[int]:
    """List the samples at which another segment begins, by the length of segments that a header (.vhdr) states."""
    length = _read_field(path, "SegmentDataPoints")
    is_cut = _read_field(path, "SegmentationType").upper() not in ("", "NOTSEGMENTED")
    return list(range(int(length), n_times, int(length))) if is_cut and length.isdecimal() and int(length) else []


def _read_field(path: Path, key: str) -> str:
    """Read a field of the section of common infos; empty where it is not there."""
    found = re.search(rf"^{key}=(.*)$", _read_section(path, "Common Infos"), re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else ""


def is_cut_off(path: Path, n_channels: int) -> bool:
    """Tell whether the samples of a header (.vhdr) end within one, so that the file was not copied to its end."""
    text = _read_text(path)
    stated = {
        key: match[1].strip()
        for key in ("DataFile", "BinaryFormat")
        if (match := re.search(rf"^{key}=(.*)$", text, re.MULTILINE | re.IGNORECASE))
    }
    width = SAMPLE_BYTES.get(stated.get("BinaryFormat", "").upper())
    data = path.parent / stated.get("DataFile", "")
    return width is not None and is_file(data) and data.stat().st_size % (width * n_channels) != 0


def _read_section(path: Path, name: str) -> str:
    parts = re.split(r"^\[(.+?)\]\s*$", _read_text(path), flags=re.MULTILINE)
    sections = dict(zip((part.lower() for part in parts[1::2]), parts[2::2], strict=True))
    return sections.get(name.lower(), "")


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin1")
    return text.replace("\r\n", "\n")
