"""How long sounds and films last by their files, without decoding them, and which last far longer than the others, or
than what else was recorded at the same time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av

from eav_ray.data.io.containers import DECODE_ERRORS, open_container

TIMES_LONGER, MORE_S = 5.0, 10.0  # than the median of a data set, before a clip is odd
MAX_ODD_SHARE = 0.25  # of a data set: where more are longer, its clips are of many lengths
N_COMPARED, LARGE_TIMES = 100, 3.0  # files that are opened anyhow; times the median of bytes that a long clip has
OPEN_TIMEOUT_S = 10.0


def read_stated_duration_s(path: str | Path) -> float | None:
    """Read how long a sound or film lasts by its file; None where it does not say, or cannot be opened."""
    try:
        with open_container(path, OPEN_TIMEOUT_S) as container:
            duration = container.duration
    except DECODE_ERRORS:
        return None
    return duration / av.time_base if duration and duration > 0 else None


def find_long_clips(durations_s: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Find clips that last far longer than the others of their data set.

    A session that was not cut, or a recorder that ran on, becomes many windows of one label.

    Args:
        durations_s: By any names.
    Returns:
        Those that last more than five times the median, and ten seconds more, the longest first, as long as they are
        less than a quarter of all; and the median, seconds.
    """
    if not durations_s:
        return {}, 0.0
    typical_s = median(durations_s.values())
    bound_s = max(TIMES_LONGER * typical_s, typical_s + MORE_S)
    odd = sorted(((s, name) for name, s in durations_s.items() if s > bound_s), reverse=True)
    if len(odd) >= MAX_ODD_SHARE * len(durations_s):
        odd = []
    return {name: s for s, name in odd}, typical_s


def read_some_durations_s(paths: Mapping[str, str]) -> dict[str, float]:
    """Read how long those of many files last that may be far longer than the others, and some to compare with.

    Files of far more bytes than the others are opened, and of the rest an even choice: thousands of films would take
    minutes.
    """
    bytes_by_name = {name: Path(path).stat().st_size for name, path in paths.items() if os.path.isfile(path)}
    if not bytes_by_name:
        return {}
    names = list(bytes_by_name)
    typical_bytes = median(bytes_by_name.values())
    compared = names[:: max(1, len(names) // N_COMPARED)]
    large = [name for name in names if bytes_by_name[name] > LARGE_TIMES * typical_bytes]
    stated = {name: read_stated_duration_s(paths[name]) for name in dict.fromkeys([*compared, *large])}
    return {name: duration_s for name, duration_s in stated.items() if duration_s is not None}


def describe_long_clips(durations_s: Mapping[str, float], kind: str) -> str:
    """Name the clips that last far longer than the others, in a line; nothing where there are none."""
    odd, typical_s = find_long_clips(durations_s)
    if not odd:
        return ""
    named = ", ".join(f"{name} ({s:.0f} s)" for name, s in list(odd.items())[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    return (
        f"{kind} of {named}{more}: far longer than the others, whose median is {typical_s:.1f} s; each becomes many "
        "windows of one label. Cut them, or leave them out"
    )


def find_shorter_modalities(durations_s: Mapping[str, float], window_s: float) -> list[str]:
    """List the modalities of a recording that end more than a window before the longest, sorted."""
    longest_s = max(durations_s.values(), default=0.0)
    return sorted(m for m, s in durations_s.items() if longest_s - s > window_s)


def describe_unequal_lengths(durations_s: Mapping[str, Mapping[str, float]], window_s: float) -> str:
    """Name the recordings whose modalities differ in length by more than a window, in a line; nothing without any.

    Args:
        durations_s: Seconds of each modality that is known of a recording, by the recording.
    """
    unequal = {name: found for name, found in durations_s.items() if find_shorter_modalities(found, window_s)}
    if not unequal:
        return ""
    named = [
        f"{name} ({', '.join(f'{m} {s:.1f} s' for m, s in sorted(found.items()))})"
        for name, found in list(unequal.items())[:3]
    ]
    more = f" and {len(unequal) - 3} more" if len(unequal) > 3 else ""
    return (
        f"modalities differ in length by more than a window of {window_s} s: {', '.join(named)}{more}; where one has "
        "ended it is missing. See whether the files belong to each other, and begin together"
    )


def remark_long_clips(quality: Sequence[dict[str, Any]]) -> None:
    """Add a remark to the qualities of recordings whose sound or film lasts far longer than those of the others."""
    for modality in ("audio", "video"):
        rows = {f"{q['subject']}/{q['recording']}": q for q in quality if f"{modality}_seconds" in q}
        odd, typical_s = find_long_clips({name: q[f"{modality}_seconds"] for name, q in rows.items()})
        for name in odd:
            rows[name].setdefault("remarks", []).append(
                f"{modality}: far longer than the others, whose median is {typical_s:.1f} s"
            )
