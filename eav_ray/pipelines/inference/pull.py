"""Copy checkpoints out of a results store. Reads JSON, tables and safetensors only; needs no Ray."""

from dataclasses import dataclass
from pathlib import Path

from eav_ray.data.io import parquet
from eav_ray.errors import ConfigError, DataError, suggest_nearest
from eav_ray.pipelines.inference.checkpoint_names import (
    FOLDERS,
    LATEST,
    NamedModel,
    find_model,
    open_named,
    open_recorded,
    suggest_sibling,
)
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.checkpoint_files import parse_checkpoint
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.best import read_best_record
from eav_ray.words import format_count


def format_candidates(store: str, study: str, *, metric: str = SELECTION_METRIC, top: int = 20) -> str:
    """A table of a study's candidates by the mean of a metric over their folds, as far as the search is.

    Raises:
        ConfigError: Something else than a search, or no such metric.
        DataError: No such search, or a damaged one.
    """
    results = open_results_store(store)
    model = find_model(results, study)
    if model.folder != "searches":
        raise ConfigError(f"{model} is no search, so it has no candidates to list; give `--list` alone")
    study, name = model.key, f"searches/{model.key}/candidates.parquet"
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
    return "\n".join([f"{format_count(len(rows), 'candidate')} of {study} by {metric}", *lines])


@dataclass(frozen=True)
class PullResult:
    source: str  # name of the training, the search, or the fold of a protocol that they are of
    paths: list[str]  # folders, which all jobs take as checkpoints; the best first
    skipped: list[str]  # why better ones are not among them


def pull(store: str, to: str, *, name: str = "", top: int = 1, next_best: bool = False) -> PullResult:
    """Copy checkpoints into new folders, `to`, `to-2`, ...

    Args:
        name: Of a search, a training, or a fold of a protocol (`checkpoint_names`). Without one the only search of the
            store; where it has none, what was trained last.
        top: How many; a search keeps `search.refit` of them.
        next_best: Take the next one of a search for each that is damaged.
    Raises:
        ConfigError: Several things are called so, or a folder exists.
        DataError: Nothing is called so, it is not finished, it has fewer checkpoints than wanted, or a file does not
            have the hash that was recorded. Nothing was written.
    """
    results = open_results_store(store)
    model = find_model(results, name) if name else _find_only_model(results)
    if model.folder != "searches" and (top > 1 or next_best):
        raise ConfigError(f"{model} has one checkpoint; --top and --next-best are of searches")
    if model.folder == "searches":
        intact, damaged = _read_best_checkpoints(results, model, top, next_best)
    else:
        intact, damaged = [_read_checkpoint_files(open_named(results, model))], []
    targets = [Path(to if not n else f"{to}-{n + 1}").absolute() for n in range(top)]
    for target in targets:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} exists and is not empty; give another folder with --to")
    for target, files in zip(targets, intact, strict=True):
        Store(target.parent).commit(target.name, files)
    return PullResult(str(model), [str(target) for target in targets], damaged)


def _find_only_model(results: Store) -> NamedModel:
    """Find the only search of a store that is finished, or else what was trained last."""
    studies = results.list_folders("searches")
    finished = [study for study in studies if read_best_record(results, study) is not None]
    if len(finished) > 1:
        raise ConfigError(
            f"{results} has {format_count(len(finished), 'search')}; name one, for example `eav pull {results} "
            f"{finished[0]}`: {', '.join(finished)}"
        )
    if finished:
        return NamedModel("searches", finished[0])
    if studies:
        raise DataError(
            f"{results} has no finished search: {', '.join(studies)}; rerun its command to continue, or name something "
            f"else of it (`eav pull {results} --list`)"
        )
    return find_model(results, LATEST)


def _read_best_checkpoints(
    results: Store, model: NamedModel, top: int, next_best: bool
) -> tuple[list[dict[str, bytes]], list[str]]:
    """Read the files of a search's best checkpoints; returns them, and why better ones are not among them."""
    path = results.format_path(f"{model.folder}/{model.key}")
    best = read_best_record(results, model.key)
    if best is None:
        raise DataError(
            f"the search {model.key} is not finished; rerun its command to continue, or see its candidates with `eav "
            f"pull {results} {model.key} --list`"
        )
    others = best.get("runners_up", [])
    if not isinstance(others, list) or not all(isinstance(other, dict) for other in others):
        raise DataError(f"the best.json of {path} is damaged; run `eav search` again")
    intact: list[dict[str, bytes]] = []
    damaged: list[str] = []
    for record in [best, *others]:
        try:
            intact.append(_read_checkpoint_files(open_recorded(results, record, path)))
        except DataError as error:
            damaged.append(str(error))
            if not next_best:
                way = "; --next-best takes the next one that is whole" if others else ""
                raise DataError(f"{error}{way}") from None
        if len(intact) == top:
            break
    if len(intact) < top:
        why = f" ({'; '.join(damaged)})" if damaged else ""
        raise DataError(
            f"{results} keeps {format_count(len(intact), 'whole checkpoint')} of this search, not {top}{why}; search "
            "again with a larger search.refit, or give a smaller --top"
        )
    return intact, damaged


def _read_checkpoint_files(checkpoint: OpenedCheckpoint) -> dict[str, bytes]:
    """Read the files of a checkpoint, each against its hash."""
    files = checkpoint.read_files()
    parse_checkpoint(files, checkpoint.path)  # it opens, or nothing is written
    return files


def open_results_store(store: str) -> Store:
    """Open a results store that holds something.

    Raises:
        DataError: It holds nothing that has a name.
    """
    results = Store(store)
    if not any(results.list_files(folder) for folder in FOLDERS):
        if results.is_local and not Path(results.root).exists():
            path = Path(results.root).absolute()
            raise DataError(
                f"{path} does not exist{suggest_sibling(path)}; a results store is what store.results names"
            )
        raise DataError(f"{store} holds no training, search or protocol; a results store is what store.results names")
    return results
