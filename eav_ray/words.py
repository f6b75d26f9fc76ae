"""Write counts and durations as words."""

IRREGULAR_PLURALS = {"person": "people"}


def format_count(count: int, noun: str) -> str:
    """Write how many there are of something: `1 fold`, `2 folds`, `1 person`, `3 people`, `2 searches`."""
    return f"{count} {noun if count == 1 else make_plural(noun)}"


def format_recordings(n_recordings: int, n_subjects: int, noun: str = "recording") -> str:
    """Write how many recordings of how many people: `12 recordings of 1 person`."""
    return f"{format_count(n_recordings, noun)} of {format_count(n_subjects, 'person')}"


def format_recordings_or_files(count: int) -> str:
    """Write how many recordings or files: `1 recording or file`, `2 recordings or files`."""
    return f"{format_count(count, 'recording')} or {'file' if count == 1 else 'files'}"


def make_plural(noun: str) -> str:
    """Make the plural of a noun, whose last word is the one that changes."""
    start, space, last = noun.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        return f"{start}{space}{IRREGULAR_PLURALS[last]}"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if last.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def format_duration(seconds: float) -> str:
    """Write an estimated time: `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return format_count(max(5, 5 * round(seconds / 5)), "second")
    if seconds < 5400:
        return format_count(round(seconds / 60), "minute")
    return f"{seconds / 3600:.1f} hours"
