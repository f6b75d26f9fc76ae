"""Check a search space, and turn it into Optuna's distributions."""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from eav_ray.config import Experiment, SearchDimension, list_feature_keys, list_keys, list_other_kinds, override
from eav_ray.config.extras import require_extra
from eav_ray.config.keys import TYPE_WORDS
from eav_ray.config.model_sections import KIND_PLACES, MODEL_PREFIX, get_kind_place
from eav_ray.errors import ConfigError

MIN_CMAES_BATCH = 4  # candidates of a generation; of fewer, the better half is one


MAX_CHECKED_COMBINATIONS = 4096  # of a space that are checked before it is searched; takes about 3 s


def apply_candidate(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """Override the keys of an experiment that a candidate changes.

    Where a space holds several kinds, each candidate has values for the keys of all of them: those that its own kind
    does not have are left out.

    Raises:
        ConfigError: A key that no kind has, or a value that does not fit.
    """
    foreign: set[str] = set()
    sections: dict[str, Any] = {f"{MODEL_PREFIX}{m}": section for m, section in experiment.model.items()}
    for key, section in (sections | {"fusion": experiment.fusion}).items():
        place = get_kind_place(key)
        kinds = place.list_kinds().items()
        keys = {kind: {f"{place.key}.{field.name}" for field in fields(other)} for kind, other in kinds}
        if own := keys.get(changes.get(f"{place.key}.kind", section.kind)):
            foreign |= set().union(*keys.values()) - own
    return override(experiment, {key: value for key, value in changes.items() if key not in foreign})


def decode_grid_point(space: dict[str, SearchDimension], number: int) -> dict[str, Any]:
    """Of a grid, the last key first to change."""
    changes: dict[str, Any] = {}
    for key, choice in reversed(space.items()):
        number, at = divmod(number, len(choice.choice))
        changes[key] = choice.choice[at]
    return {key: changes[key] for key in space}


def make_distribution(key: str, choice: SearchDimension) -> BaseDistribution:
    if choice.choice:
        return CategoricalDistribution(choice.choice)
    assert choice.low is not None and choice.high is not None
    if is_integer_key(key):
        return IntDistribution(int(choice.low), int(choice.high), log=choice.log)
    return FloatDistribution(choice.low, choice.high, log=choice.log)


def is_integer_key(key: str) -> bool:
    """Whether a key of an experiment is a whole number."""
    tables = [list_keys(), *(table for _, table in list_other_kinds()), list_feature_keys()]
    names = (key, re.sub(r"^(model|train\.encoders)\.\w+\.", r"\1.NAME.", key))
    return any(table[name][0] == TYPE_WORDS[int] for table in tables for name in names if name in table)


def check_search_space(experiment: Experiment) -> None:
    """Refuse a space with a candidate that could not be trained: it would fail in a worker, after the encoders.

    Every combination of the choices, of the ends of ranges, and of all values of whole-number ranges must be an
    experiment. Of more than 4096 combinations, 4096 are drawn at random, the same each time.

    Raises:
        ConfigError: Naming the first combination that is refused, and why.
    """
    e = experiment
    is_fusion_search, is_cmaes = e.search.mode == "fusion", e.search.sampler == "cmaes"
    if is_fusion_search and e.train.mode != "staged":
        raise ConfigError(
            f"train.mode is {e.train.mode}, but search.mode=fusion tries fusions on the embeddings of frozen encoders; "
            "set train.mode=staged, or search.mode=full"
        )
    if is_cmaes:
        require_extra("cmaes", "search.sampler=cmaes", {"cmaes": "cmaes"}, "use another search.sampler")
    ranges = [key for key, choice in e.search.space.items() if not choice.choice]
    if e.search.sampler == "grid" and ranges:
        raise ConfigError(
            f"search.sampler is grid, but search.space.{ranges[0]} is a range; list its values as choice: [...]"
        )
    if is_cmaes and e.search.ask_batch_size < MIN_CMAES_BATCH:
        raise ConfigError(
            f"search.ask_batch_size is {e.search.ask_batch_size}, but search.sampler=cmaes learns from "
            f"{MIN_CMAES_BATCH} or more at a time; set search.ask_batch_size to at least {MIN_CMAES_BATCH}"
        )
    if not is_fusion_search and e.search.rungs:
        raise ConfigError(
            "search.rungs compares fusions on the way, but search.mode=full trains all of a candidate; use "
            "search.prune, which compares after folds"
        )
    if is_cmaes and e.search.cost:
        raise ConfigError(
            f"search.sampler is cmaes, which has one objective, but search.cost={e.search.cost} is a second; use tpe"
        )
    if e.search.cost and (e.search.prune or e.search.rungs):
        raise ConfigError(
            f"search.cost={e.search.cost} keeps cheap candidates with lower scores, which search.prune and "
            "search.rungs would leave; set search.prune=false and search.rungs=[], or search.cost to nothing"
        )
    for kind in getattr(e.search.space.get("fusion.kind"), "choice", ()) if is_fusion_search else ():
        section = KIND_PLACES["fusion"].find_kind(kind)
        if section is not None and not section.has_parameters:
            raise ConfigError(
                f"search.space.fusion.kind holds {kind}, which has nothing to train; take it out of the space"
            )
    values = {key: _list_values(key, choice) for key, choice in e.search.space.items()}
    count = math.prod(map(len, values.values()))
    if count <= MAX_CHECKED_COMBINATIONS:
        tried, coverage = itertools.product(*values.values()), ""
    else:
        draw = random.Random(0)
        tried = ([draw.choice(v) for v in values.values()] for _ in range(MAX_CHECKED_COMBINATIONS))
        coverage = f" ({MAX_CHECKED_COMBINATIONS} of {count} combinations were tried)"
    for combination in tried:
        changes = dict(zip(values, combination, strict=True))
        try:
            apply_candidate(e, changes)
        except ConfigError as error:
            described = " with ".join(f"{k}={v}" for k, v in changes.items())
            reason = str(error).replace("override: ", "").replace("\n", "; ")
            if ranges := [k for k, v in values.items() if isinstance(v, range)]:
                reason += f"; a range of {ranges[0]} draws every whole number: list those that fit as choice: [...]"
            raise ConfigError(f"search.space can draw {described}: {reason}{coverage}") from None


def _list_values(key: str, choice: SearchDimension) -> Sequence[Any]:
    if choice.choice:
        return choice.choice
    low, high = choice.low or 0.0, choice.high or 0.0
    if not is_integer_key(key):
        return low, high
    if not (low.is_integer() and high.is_integer()):
        raise ConfigError(
            f"search.space.{key} has low={low:g} and high={high:g}, but {key} is a whole number; use whole numbers"
        )
    return range(int(low), int(high) + 1)
