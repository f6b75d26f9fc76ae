"""What a BrainVision header states that MNE does not hand on: units as they are written, and times of segments."""

import re
from pathlib import Path

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
        if file.is_file():
            return _read_text(file)
    return ""


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
    return width is not None and data.is_file() and data.stat().st_size % (width * n_channels) != 0


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
