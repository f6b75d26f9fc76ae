"""Tell whether a stored file holds a subject: their rows in tables, their name in JSON and text."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.data.io.parquet import ARROW_READ_ERRORS, read_parquet_table
from eav_ray.storage import Store

SIDES = ("train", "validation", "test")  # keys of a split, whose values are recordings
TEXT_SUFFIXES = (".html", ".md", ".csv", ".txt", ".log")


def holds_subject(store: Store, name: str, subject: str) -> bool:
    """Tell whether a file of a store holds a subject: by its name, its rows or its text.

    What cannot be read as what its name says counts as text. Tensors know no names, and are not looked at.
    """
    path = PurePosixPath(name)
    if is_name_of_subject(path.name, subject):
        return True
    if path.suffix == ".parquet":
        return _holds_in_table(store.read(name), subject)
    if path.suffix == ".json":
        data = store.read(name)
        try:
            return mentions_subject(json.loads(data), subject)
        except ValueError:
            return _holds_in_text(data, subject)
    return path.suffix in TEXT_SUFFIXES and _holds_in_text(store.read(name), subject)


def is_name_of_subject(file: str, subject: str) -> bool:
    """Tell whether a file is named after a subject, as shards and their records are: `<subject>-...`."""
    return PurePosixPath(file).stem == subject or file.startswith(f"{subject}-")


def is_of_subject(text: str, subject: str) -> bool:
    """Tell whether a text is a subject's name, or that of one of their recordings, `<subject>/...`."""
    return text == subject or text.startswith(f"{subject}/")


def mentions_subject(tree: Any, subject: str) -> bool:
    """Tell whether JSON names a subject or a recording of theirs.

    A number is a name only where a key says that there are subjects: other things are numbered too. What stands below
    a key that speaks of channels is none, as people are called P3 and C4, too; nor are the sides of a split.
    """
    return any(
        text.startswith(f"{subject}/") or (text == subject and (below_subjects or not subject.isdecimal()))
        for text, below_subjects in _list_texts(tree, False)
    )


def _list_texts(tree: Any, below_subjects: bool) -> Iterator[tuple[str, bool]]:
    """List all texts and keys, and whether they stand below a key that speaks of subjects."""
    if isinstance(tree, str):
        yield tree, below_subjects
    elif isinstance(tree, list):
        for one in tree:
            yield from _list_texts(one, below_subjects)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key not in SIDES or below_subjects:
                yield key, below_subjects
            if "channel" not in key or below_subjects:
                yield from _list_texts(value, below_subjects or "subject" in key)


def _holds_in_table(data: bytes, subject: str) -> bool:
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        names = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
        table = read_parquet_table(pa.BufferReader(data), names)
        for name in names:
            # A table of numbers as text names a subject in its own column alone.
            is_named = name == "subject" or not subject.isdecimal()
            for text in table.column(name).unique().to_pylist():
                if text is not None and is_of_subject(text, subject) and (is_named or "/" in text):
                    return True
    except ARROW_READ_ERRORS:
        return _holds_in_text(data, subject)
    return False


def _holds_in_text(data: bytes, subject: str) -> bool:
    """Look for the name as a word, in pages as they are shown; a number is one only before the slash of a recording."""
    ending = "/" if subject.isdecimal() else r"(?![\w-])"
    text = data.decode("utf-8", "replace")
    pattern = re.compile(rf"(?<![\w-]){re.escape(subject)}{ending}")
    return any(pattern.search(shown) for shown in (text, html.unescape(text)))
