"""The best checkpoint of a search, out of the results store. Reads JSON and safetensors only; needs no Ray."""

from pathlib import Path
from typing import Any

from eav_ray.errors import ConfigError, DataError, nearest
from eav_ray.storage import COMMIT, Store, checked_name, sha256
from eav_ray.training import checkpoint as ckpt


def finished_studies(results: Store) -> dict[str, dict[str, Any]]:
    """Study name -> its `best.json`."""
    found: dict[str, dict[str, Any]] = {}
    for name in results.folders("searches"):
        if results.exists(f"searches/{name}/best.json"):
            found[name] = results.read_json(f"searches/{name}/best.json")
            if not isinstance(found[name], dict):
                raise DataError(f"{results}/searches/{name}/best.json is damaged; run jobs/tune.py again")
    return found


def studies(store: str) -> str:
    """A table of the finished searches of a store."""
    found = finished_studies(_open(store))
    lines = [f"{'study':44}{'score':>8}{'candidate':>11}  changes"]
    for name, best in sorted(found.items()):
        value, candidate = best.get("value"), best.get("candidate", -1)
        score = f"{value:.4f}" if isinstance(value, int | float) else "damaged"
        lines.append(f"{name:44}{score:>8}{candidate:>11}  {best.get('changes')}")
    return "\n".join(lines)


def pull(store: str, to: str, *, study: str = "") -> str:
    """Copy a study's best checkpoint into a new folder.

    Returns:
        The folder, which all jobs take as a checkpoint.
    Raises:
        ConfigError: Several studies and none named, an unknown one, or the folder exists.
        DataError: No finished search, or a file does not have the hash that was recorded.
    """
    results = _open(store)
    found = finished_studies(results)
    if not found:
        raise DataError(f"{store} holds no finished search; run jobs/tune.py with store.results={store} first")
    if study and study not in found:
        known = ", ".join(sorted(found))
        raise ConfigError(f"{store} has no finished study {study}; it has {known}{nearest(study, found)}")
    if not study and len(found) > 1:
        raise ConfigError(f"{store} has {len(found)} studies; name one with --study: {', '.join(sorted(found))}")
    best = found[study or next(iter(found))]
    try:
        prefix, expected = checked_name(str(best["checkpoint"])), best["commit_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"the best.json of {store} is damaged: {error!r}; run jobs/tune.py again") from None
    if sha256(results.read(f"{prefix}/{COMMIT}")) != expected:
        raise DataError(f"{store}/{prefix} is not the checkpoint that best.json names; run jobs/tune.py again")
    files = results.read_committed(prefix)
    ckpt.from_files(files, name=f"{store}/{prefix}")  # it opens, or nothing is written
    target = Path(to).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{to} exists and is not empty; give another folder with --to")
    Store(target.parent).commit(target.name, files)
    return str(target)


def _open(store: str) -> Store:
    results = Store(store)
    if not results.names("searches"):
        raise DataError(f"{store} is not a results store with searches; it is what store.results names")
    return results
