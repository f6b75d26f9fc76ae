"""Take a subject out of the stores of an experiment: list all that holds them, and delete it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from eav_ray.config import Experiment
from eav_ray.data.shards import window_cache
from eav_ray.errors import ConfigError, DataError, suggest_nearest
from eav_ray.pipelines.withdraw import result_holdings, shard_holdings
from eav_ray.pipelines.withdraw.result_holdings import ResultHoldings
from eav_ray.pipelines.withdraw.shard_holdings import ShardHoldings
from eav_ray.storage import NodeCache, Store
from eav_ray.training import mapped_embeddings

MAX_SHOWN = 20  # names of a kind
MAX_LOCKS = 16  # that are asked for at once
BEYOND_REACH = (
    "their recordings under data.root: take them away yourself, or set data.subjects to the others; else they are "
    "preprocessed again",
    "copies that `eav pull` made, pages and predictions that were written elsewhere by --out, exported models",
    "store.cache of other machines: delete it there, it is made anew",
    "trackers (MLflow, TensorBoard), logs, backups and versions that a bucket keeps of what was deleted",
)


@dataclass(frozen=True)
class Holdings:
    """All that the stores of an experiment hold of one subject."""

    subject: str
    shards: ShardHoldings
    results: ResultHoldings
    cached: tuple[str, ...]  # names of files in the cache of this machine

    @property
    def is_empty(self) -> bool:
        s, r = self.shards, self.results
        return not (s.files or s.indexes or s.hashes or r.deleted or r.models or r.tested or r.unknown or self.cached)


def find_holdings(experiment: Experiment, subject: str) -> Holdings:
    """Find all that the stores of an experiment hold of a subject of its data set.

    Raises:
        ConfigError: Nothing is held of anybody of this name; says who is nearest.
    """
    _check_name(subject)
    e = experiment
    shards = shard_holdings.find_shard_holdings(Store(e.store.shards), e.data, subject)
    results = result_holdings.find_result_holdings(Store(e.store.results), subject, shards.roots)
    found = Holdings(subject, shards, results, _find_cached(e, subject))
    if found.is_empty:
        known = sorted(shards.subjects)
        shown = ", ".join(known) if len(known) <= 8 else f"{', '.join(known[:4])}, ..., {known[-1]}"
        others = sorted(shards.other_roots | results.other_roots)
        elsewhere = f"; data.root={others[0]} has one, another data set" if others else ""
        raise ConfigError(
            f'{e.store.shards}, {e.store.results} and {e.store.cache} hold nothing of "{subject}" of data.root='
            f"{e.data.root}; its shards hold {shown or 'nobody'}{suggest_nearest(subject, known)}{elsewhere}"
        )
    return found


def withdraw(experiment: Experiment, subject: str, *, models: bool = False) -> Holdings:
    """Delete all that the stores of an experiment hold of a subject; what is cut off is finished by the same call.

    Args:
        models: Delete the runs and searches too that learned from them.
    Returns:
        What was there before.
    Raises:
        ConfigError: As `find_holdings`.
        DataError: A job is running that writes to one of the stores.
    """
    e = experiment
    shards, results = Store(e.store.shards), Store(e.store.results)
    _check_nobody_writes(results, result_holdings.list_locks(results))
    with ExitStack() as stack:
        for name in shard_holdings.list_locks(shards, e.data):
            stack.enter_context(shards.lock(name))
        found = find_holdings(e, subject)
        # What leads to other things goes after them, so that they are found again where this is cut off: shards tell
        # that a data set was moved, and encoders whom the fusions that are made of them know.
        for unit in (*found.results.deleted, *(reversed(found.results.models) if models else ())):
            result_holdings.delete_unit(results, unit)
        shard_holdings.delete_shard_holdings(shards, found.shards, subject)
    if found.cached:
        NodeCache(e.store.cache, e.store.cache_gb).delete(found.cached)
    return found


def format_holdings(found: Holdings, experiment: Experiment, *, deleted: bool, models: bool = False) -> str:
    """Write what is held, what was done about it, and what is out of reach."""
    e, s, r = experiment, found.shards, found.results
    lines = []
    for title, names in (
        (
            f"of {e.store.shards}",
            [*s.files, *(f"{i}: their rows" for i in s.indexes), *(f"{h}: their files" for h in s.hashes)],
        ),
        (f"of {e.store.results}", [*r.deleted, *(r.models if models else ())]),
        (f"of {e.store.cache} on this machine", list(found.cached)),
    ):
        lines.append(f"{len(names)} {title}{' are deleted' if deleted else ''}")
        lines += _shorten(names)
    if r.models and not models:
        lines.append(
            f"models and searches that know {found.subject} stay, {len(r.models)} in all: faces and voices are "
            "biometric data, and a model may give them away; --models deletes these too, and they are trained again "
            "without them"
        )
        lines += _shorten([f"{name}: {how}" for name, how in r.models.items()])
    if r.unknown:
        lines.append(
            f"files that name {found.subject} and that no command is known to have written stay: {len(r.unknown)}"
        )
        lines += _shorten(r.unknown)
    if r.adapted:
        lines.append(f"models that were adapted from others, which may know {found.subject}, stay: {len(r.adapted)}")
        lines += _shorten(r.adapted)
    if r.tested:
        lines.append(f"models that were not trained on {found.subject} name them on their test side: {len(r.tested)}")
    others = sorted(s.other_roots | r.other_roots)
    if others:
        lines.append(f"left alone, another data set with a {found.subject}: data.root={', '.join(others)}")
    lines += ["out of reach from here:", *(f"  {line}" for line in BEYOND_REACH)]
    if not deleted:
        lines.append("nothing was deleted; --yes deletes what is listed")
    return "\n".join(lines)


def _shorten(names: list[str]) -> list[str]:
    more = [f"  and {len(names) - MAX_SHOWN} more"] if len(names) > MAX_SHOWN else []
    return [*(f"  {name}" for name in names[:MAX_SHOWN]), *more]


def _check_name(subject: str) -> None:
    if not subject or subject in (".", "..") or set(subject) & set("/\\\0"):
        raise ConfigError(f'"{subject}" is no name of a subject; give it as `eav check` prints it')


def _check_nobody_writes(store: Store, locks: list[str]) -> None:
    """Check that no job is writing: several locks at a time, as that of a killed job may take a while to end.

    Raises:
        DataError: One is.
    """

    def take(name: str) -> None:
        with store.lock(name):
            pass

    with ThreadPoolExecutor(MAX_LOCKS) as pool:
        for _ in pool.map(take, locks):
            pass


def _find_cached(e: Experiment, subject: str) -> tuple[str, ...]:
    """Find the files in the cache of this machine that hold a subject; those that are damaged count as such."""
    if not Path(e.store.cache).is_dir():
        return ()
    found = []
    for path in NodeCache(e.store.cache, e.store.cache_gb).list_entries():
        read = window_cache.read_mapped_subjects if path.suffix == ".arrow" else mapped_embeddings.read_mapped_subjects
        try:
            if path.suffix not in (".arrow", ".embeddings") or subject in read(path):
                found.append(path.name)
        except (DataError, FileNotFoundError):
            found.append(path.name)
    return tuple(found)
