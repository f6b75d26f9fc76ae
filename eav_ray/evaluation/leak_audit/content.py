"""Checks of what the windows of the two sides hold, under whatever name."""

from collections.abc import Sequence

import numpy as np

from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.evaluation.leak_audit.checks import LeakCheck, describe_names, judge

EQUAL_WINDOWS = "equal windows in two splits"  # name of a check


class WindowDigests:
    """Hashes of the content of all windows, computed once for any number of checkpoints."""

    def __init__(self, windows: WindowCache) -> None:
        self.windows = windows
        self._by_modality: dict[str, np.ndarray] = {}

    def get_digests(self, modality: str) -> np.ndarray:
        if modality not in self._by_modality:
            self._by_modality[modality] = self.windows.compute_digests(modality)
        return self._by_modality[modality]


def audit_equal_windows(
    split: Split, pretrained_on: tuple[str, ...], window_digests: WindowDigests, modalities: Sequence[str]
) -> LeakCheck:
    """No signal of a test window is also among the windows of the other sides, under whatever name.

    Args:
        pretrained_on: Recordings that were trained on, too, before the split's own training side.
    """
    windows = window_digests.windows
    test_rows = windows.find_rows(split.test)
    other_rows = windows.find_rows((*split.train, *split.validation, *pretrained_on))
    compared = 0
    for m in modalities:
        digests = window_digests.get_digests(m)
        mine, theirs = set(digests[test_rows]) - {""}, set(digests[other_rows]) - {""}
        compared += len(mine)
        if shared := mine & theirs:
            rows = [r for r in (*test_rows, *other_rows) if digests[r] in shared]
            ids = windows.ids.iloc[rows]
            examples = describe_names({f"{i} window {w}" for i, w in zip(ids["id"], ids["window"], strict=True)})
            return judge(EQUAL_WINDOWS, f"{len(shared)} equal signals of {m}: {examples}", "")
    return judge(EQUAL_WINDOWS, "", f"{compared} signals of test windows, by content: none is on another side")


def audit_equal_signals_of_datasets(
    training_digests: WindowDigests,
    trained_on: tuple[str, ...],
    test_digests: WindowDigests,
    tested_on: tuple[str, ...],
    modalities: Sequence[str],
) -> LeakCheck:
    """No signal of the tested recordings of one data set is among those of another that was trained on."""
    rows, test_rows = training_digests.windows.find_rows(trained_on), test_digests.windows.find_rows(tested_on)
    for m in modalities:
        digests = test_digests.get_digests(m)
        shared = ({*training_digests.get_digests(m)[rows]} & {*digests[test_rows]}) - {""}
        if shared:
            ids = test_digests.windows.ids["id"][[digest in shared for digest in digests]]
            return judge(EQUAL_WINDOWS, f"{len(shared)} equal signals of {m}: {describe_names(set(ids))}", "")
    return judge(EQUAL_WINDOWS, "", f"no signal of {len(tested_on)} recordings is among those of the training")
