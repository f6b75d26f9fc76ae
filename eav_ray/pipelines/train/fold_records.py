"""What the results store keeps of the folds of a protocol, beside their predictions. Imports neither Ray nor torch."""

import json
from collections.abc import Mapping
from typing import Any

from eav_ray.errors import DataError
from eav_ray.storage import Store, check_format

FOLDS_FORMAT = 2  # raise when what is kept of a protocol changes
FOLDS_FILE = "folds.json"


def read_fold_records(results: Store, prefix: str) -> list[dict[str, Any]]:
    """Read what is kept of each fold of a committed protocol, and nothing else of it.

    Args:
        prefix: Of the protocol in the results store.

    Raises:
        DataError: As `parse_fold_records`.
    """
    commit = results.read_commit(prefix)
    files = {FOLDS_FILE: results.read_committed_file(prefix, FOLDS_FILE, commit)} if FOLDS_FILE in commit.files else {}
    return parse_fold_records(files, results.format_path(prefix))


def parse_fold_records(files: Mapping[str, bytes], path: str) -> list[dict[str, Any]]:
    """Parse what is kept of each fold: `fold`, `run`, `checkpoint`, `commit_sha256`, `test`, ...

    Args:
        files: Content by name, of a committed protocol.
        path: Where they lie, for errors.

    Raises:
        DataError: It was damaged, or is of another format.
    """
    try:
        tree = json.loads(files[FOLDS_FILE])
        number, records = tree.get("format"), [{**record, "fold": int(record["fold"])} for record in tree["folds"]]
    except (KeyError, ValueError, TypeError, AttributeError):
        raise DataError(f"{path} was damaged; delete it and give the command again") from None
    check_format(number, FOLDS_FORMAT, path, "delete it and give the command again")
    return records
