"""The best checkpoints of a search, out of the results store. Reads JSON and safetensors only; needs no Ray."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eav_ray.data.io import parquet
from eav_ray.errors import ConfigError, DataError, suggest_nearest
from eav_ray.storage import Store, check_store_name
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.checkpoint_files import parse_checkpoint
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.best import read_best_record


def read_finished_studies(results: Store) -> dict[str, dict[str, Any]]:
    """Study name -> its `best.json`."""
    found: dict[str, dict[str, Any]] = {}
    for name in results.list_folders("searches"):
        if (best := read_best_record(results, name)) is not None:
            found[name] = best
    return found


def format_studies(store: str) -> str:
    """A table of the searches of a store, those that still run or were stopped among them."""
    results = _open_results_store(store)
    found = read_finished_studies(results)
    lines = [f"{'study':44}{'score':>8}{'candidate':>11}  changes"]
    for name in sorted(results.list_folders("searches")):
        best = found.get(name)
        if best is None:
            lines.append(f"{name:44}{'':>8}{'':>11}  not finished; --study {name} shows its candidates")
            continue
        value, candidate = best.get("value"), best.get("candidate", -1)
        score = f"{value:.4f}" if isinstance(value, int | float) else "damaged"
        lines.append(f"{name:44}{score:>8}{candidate:>11}  {best.get('changes')}")
    return "\n".join(lines)


def format_candidates(store: str, study: str, *, metric: str = SELECTION_METRIC, top: int = 20) -> str:
    """A table of a study's candidates by the mean of a metric over their folds, as far as the search is.

    Raises:
        ConfigError: No such study or metric.
    """
    results = _open_results_store(store)
    name = f"searches/{_require_study(study, results.list_folders('searches'), store)}/candidates.parquet"
    if not results.exists(name):
        raise DataError(f"{store} has no candidate of {study} yet")
    table = parquet.decode_dataframe(results.read(name), results.format_path(name))
    if missing := [c for c in ("candidate", "state", "changes") if c not in table]:
        raise DataError(
            f"{results.format_path(name)} is damaged: it has no column {missing[0]}; run `eav search` again"
        )
    metrics = [str(c) for c in table.columns if str(c).startswith("validation_")]
    if metric not in metrics:
        raise ConfigError(
            f"--metric={metric} is not in {name}; it has {', '.join(metrics)}{suggest_nearest(metric, metrics)}"
        )
    if "cost" not in table:
        table["cost"] = float("nan")
    rows = table.groupby("candidate").agg(
        score=(metric, "mean"),
        folds=(metric, "size"),
        state=("state", "first"),
        changes=("changes", "first"),
        cost=("cost", "first"),
    )
    # On fewer folds, or without a number, a mean is no rank.
    rows = rows.assign(last=rows["state"] != "COMPLETE").sort_values(["last", "score"], ascending=[True, False])
    has_cost = bool(rows["cost"].notna().any())  # a search with search.cost
    lines = [
        f"{'candidate':>9}{'score':>8}{'cost' if has_cost else '':>{13 * has_cost}}{'folds':>7}  {'state':10}changes"
    ]
    for number, row in rows.head(top).iterrows():
        cost_text = f"{row['cost']:>13,.6g}" if has_cost else ""
        lines.append(f"{number:>9}{row['score']:>8.4f}{cost_text}{row['folds']:>7}  {row['state']:10}{row['changes']}")
    return "\n".join([f"{len(rows)} candidates of {study} by {metric}", *lines])


@dataclass(frozen=True)
class PullResult:
    paths: list[str]  # folders, which all jobs take as checkpoints; the best first
    skipped: list[str]  # why better ones are not among them


def pull(store: str, to: str, *, study: str = "", top: int = 1, next_best: bool = False) -> PullResult:
    """Copy a study's best checkpoints into new folders, `to`, `to-2`, ...

    Args:
        top: How many; the search keeps `search.refit` of them.
        next_best: Take the next one for each that is damaged.
    Raises:
        ConfigError: Several studies and none named, an unknown one, or a folder exists.
        DataError: No finished search, fewer checkpoints than wanted, or a file does not have the hash that was
            recorded. Nothing was written.
    """
    results = _open_results_store(store)
    found = read_finished_studies(results)
    if study not in found and study in results.list_folders("searches"):
        raise DataError(
            f"the search {study} is not finished; give its command again, or see its candidates with --list --study "
            f"{study}"
        )
    if not found:
        raise DataError(f"{store} holds no finished search; run `eav search` with store.results={store} first")
    if not study and len(found) > 1:
        raise ConfigError(f"{store} has {len(found)} studies; name one with --study: {', '.join(sorted(found))}")
    best = found[_require_study(study, found, store) if study else next(iter(found))]
    intact, damaged = [], []
    for record in [best, *_list_next_best(best, store)]:
        try:
            intact.append(_read_checkpoint_files(results, record, store))
        except DataError as error:
            damaged.append(str(error))
            if not next_best:
                way = "; --next-best takes the next one that is whole" if _list_next_best(best, store) else ""
                raise DataError(f"{error}{way}") from None
        if len(intact) == top:
            break
    if len(intact) < top:
        why = f" ({'; '.join(damaged)})" if damaged else ""
        raise DataError(
            f"{store} keeps {len(intact)} whole checkpoints of this study, not {top}{why}; search again with a larger "
            "search.refit, or give a smaller --top"
        )
    targets = [Path(to if not n else f"{to}-{n + 1}").absolute() for n in range(top)]
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} exists and is not empty; give another folder with --to")
    for target, files in zip(targets, intact, strict=True):
        Store(target.parent).commit(target.name, files)
    return PullResult([str(target) for target in targets], damaged)


def _require_study(study: str, known_studies: Collection[str], store: str) -> str:
    if study not in known_studies:
        known_names = ", ".join(sorted(known_studies))
        raise ConfigError(
            f"{store} has no such study {study}; it has {known_names}{suggest_nearest(study, known_studies)}"
        )
    return study


def _list_next_best(best: dict[str, Any], store: str) -> list[dict[str, Any]]:
    others = best.get("runners_up", [])
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise DataError(f"the best.json of {store} is damaged; run `eav search` again")
    return others


def _read_checkpoint_files(results: Store, record: dict[str, Any], store: str) -> dict[str, bytes]:
    """Of the checkpoint that is recorded, each against its hash."""
    try:
        prefix, expected = check_store_name(str(record["checkpoint"])), record["commit_sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"the best.json of {store} is damaged: {error!r}; run `eav search` again") from None
    checkpoint = OpenedCheckpoint(results, prefix)
    if checkpoint.commit_sha256 != expected:
        raise DataError(f"{checkpoint.path} is not the checkpoint that best.json names; run `eav search` again")
    files = checkpoint.read_files()
    parse_checkpoint(files, checkpoint.path)  # it opens, or nothing is written
    return files


def _open_results_store(store: str) -> Store:
    results = Store(store)
    if not results.list_files("searches"):
        raise DataError(f"{store} is not a results store with searches; it is what store.results names")
    return results
