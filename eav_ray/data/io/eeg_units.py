"""What the unit field of an EEG file means, however it is written."""

import re

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
