"""What the unit field of an EEG file means, however it is written."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eav_ray.data.recordings import RawEEG

EEG_UNIT_KEY = "preprocessing.eeg.unit"

# Microvolts in one of each unit.
MICROVOLTS = {"nanovolt": 1e-3, "microvolt": 1.0, "millivolt": 1e3, "volt": 1e6}

# Greek mu, the micro sign, what UTF-8 read as Latin-1 makes of either, and the mu of Shift JIS.
MICRO_SIGNS = re.compile("\u03bc|\u00b5|\u00c2\u00b5|\u00ce\u00bc|\x83\u00ca")
MICRO_WORDS = ("u", "mu", "micro", "mikro")
PREFIXES = {"": "volt", "m": "millivolt", "milli": "millivolt", "n": "nanovolt", "nano": "nanovolt"}
PREFIXES |= dict.fromkeys(MICRO_WORDS, "microvolt")
USUAL_SPELLINGS = ("uV", "mV", "nV", "V")
# fmt: off
NO_VOLTAGES = frozenset((
    "%", "degc", "c", "f", "us", "s", "ms", "mmhg", "bpm", "1/min", "g", "m/s^2", "m/s2", "deg/s", "l/min", "lpm",
    "ohm", "kohm", "boolean", "bool", "hz", "lux", "pa", "a",
))
# fmt: on


def parse_unit(text: str) -> str:
    """Read a unit field: a key of `MICROVOLTS`, or "auto" where it is empty or says nothing known.

    `uV`, `UV`, `muV`, `microV` and the ways of writing a Greek mu are microvolts; capitals mean nothing, but for `MV`,
    which is no unit of EEG. A letter that was lost (`.V`, `?V`) may have been any.
    """
    word = _simplify(text)
    if word.startswith("MV"):
        return "auto"
    # A field of EDF has eight letters, which cuts "microvolt" off.
    match = re.fullmatch(r"(?:([a-z]+?)[ ._-]*)?v(?:o(?:l(?:ts?)?)?)?", word.lower())
    return PREFIXES.get(match[1] or "", "auto") if match else "auto"


def is_usual_unit(text: str) -> bool:
    """Tell whether a unit field is written as formats have it, so that there is nothing to remark on."""
    return _simplify(text) in USUAL_SPELLINGS


def is_no_voltage(text: str) -> bool:
    """Tell whether a unit field states something that is no voltage, so that its channel is no EEG."""
    return MICRO_SIGNS.sub("u", text.strip("\0 ")).lower().strip("\u00b0") in NO_VOLTAGES


def _simplify(text: str) -> str:
    return MICRO_SIGNS.sub("u", text.replace("\0", " ").strip())


def convert_units(
    values_CT: np.ndarray, hz: float, channels: Sequence[str], units: Sequence[str], scales: Sequence[float]
) -> RawEEG:
    """Bring values that MNE hands out to microvolts where their unit is known, else to the numbers of the file.

    Where some channels state a unit and others none, those take the commonest of the stated ones.

    Args:
        values_CT: What MNE made of the numbers; changed in place.
        units: As they are written.
        scales: By which MNE multiplied the numbers of each channel.
    """
    read = read_units(units)
    to_unit = [MICROVOLTS.get(unit, 1.0) / scale for unit, scale in zip(read.units, scales, strict=True)]
    values_CT *= np.array(to_unit)[:, None]
    stated = set(read.units) - {"auto"}
    return RawEEG(
        values_CT,
        hz,
        tuple(channels),
        "microvolt" if stated else "auto",
        remarks=read.remarks,
        stated_unit=stated.pop() if len(stated) == 1 else "",
    )


class ReadUnits(NamedTuple):
    units: list[str]  # of each channel: a key of `MICROVOLTS`; all "auto" where none is known
    remarks: tuple[str, ...]


def read_units(written: Sequence[str]) -> ReadUnits:
    """Read the units of channels as they are written; a channel without one takes the commonest of the others."""
    units = [parse_unit(unit) for unit in written]
    remarks = []
    for unit, text in dict.fromkeys(zip(units, written, strict=True)):
        if unit == "auto":
            remarks.append(f"unit {text.strip()!r} is none that is known: {EEG_UNIT_KEY} decides, or the amplitude")
        elif not is_usual_unit(text):
            remarks.append(f"unit {text.strip()!r} is read as {unit}")
    known = Counter(unit for unit in units if unit != "auto")
    if known and "auto" in units:
        commonest = known.most_common(1)[0][0]
        remarks.append(f"channels without a known unit are taken as {commonest}, as the others")
        units = [commonest if unit == "auto" else unit for unit in units]
    return ReadUnits(units, tuple(remarks))
