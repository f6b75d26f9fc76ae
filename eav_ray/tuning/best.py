"""The record of a finished search, `searches/<study>/best.json`: its best candidates and their checkpoints."""

from typing import Any

from eav_ray.errors import DataError
from eav_ray.storage import Store, check_format

BEST_FORMAT = 1  # of `best.json`
BEST_FILE = "best.json"


def write_best_record(results: Store, study: str, records: list[dict[str, Any]]) -> None:
    """Write the record of a study.

    Args:
        records: One for each candidate that was trained anew, the best first.
    """
    best = {"format": BEST_FORMAT, "study": study} | records[0] | {"runners_up": records[1:]}
    results.write_json(f"searches/{study}/{BEST_FILE}", best)


def read_best_record(results: Store, study: str) -> dict[str, Any] | None:
    """Read the record of a study; None where the search is not finished.

    Raises:
        DataError: It is damaged, or of another format.
    """
    name = f"searches/{study}/{BEST_FILE}"
    if not results.exists(name):
        return None
    best = results.read_json(name)
    if not isinstance(best, dict):
        raise DataError(f"{results.format_path(name)} is damaged; run `eav search` again")
    check_format(best.get("format"), BEST_FORMAT, results.format_path(name), "run `eav search` again")
    return best
