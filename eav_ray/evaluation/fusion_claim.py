"""Say whether a fusion helps: against the best single modality and the better rule of fusion, paired over people."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from eav_ray.evaluation.comparisons import MIN_SUBJECTS, PairedComparison, compare_paired
from eav_ray.evaluation.correctness import find_best_source
from eav_ray.training.metrics import RULE_SOURCES
from eav_ray.words import format_count


@dataclass(frozen=True)
class FusionClaim:
    """The fusion against the two bars that are right to ask of it."""

    best_single: str
    better_rule: str
    comparisons: list[PairedComparison]  # with the one and the other, Holm's correction for both

    @property
    def helps(self) -> bool:
        """Whether it is better than both, each difference significant."""
        return all(one.difference.mean > 0 and one.significant for one in self.comparisons)

    def __str__(self) -> str:
        n_subjects = self.comparisons[0].n_subjects
        if n_subjects < MIN_SUBJECTS:
            of = format_count(n_subjects, "person")
            return f"whether the fusion helps cannot be said of {of}: a test over people wants more"
        differences = " and ".join(
            f"{100 * one.difference.mean:+.2f} points against {one.other} (Holm p = {one.holm_p_value:.3g})"
            for one in self.comparisons
        )
        verdict = "the fusion helps" if self.helps else "the fusion is not shown to help"
        return f"{verdict}: {differences}, paired over {format_count(n_subjects, 'person')}"


def judge_fusion(correct: pd.DataFrame, modalities: Sequence[str]) -> FusionClaim:
    """Compare the fusion with the best single modality and the better of the rules that train nothing.

    A fusion that is better than a modality alone may still do less than the product of the probabilities, which costs
    nothing: to help, it has to beat both. Both are chosen on the rows that they are compared on, which makes the bar
    higher, never lower.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
    """
    single, rule = (find_best_source(correct, sources) for sources in (modalities, RULE_SOURCES))
    comparisons = compare_paired(correct, "fusion", {name: correct[name] for name in (single, rule)})
    return FusionClaim(single, rule, comparisons)
