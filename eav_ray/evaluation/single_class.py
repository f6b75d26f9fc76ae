"""Find models that name one class for nearly all windows: their accuracy is the share of that class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.splits import IMBALANCE_RATIO
from eav_ray.training.metrics import LOGIT_PREFIX, holds_numbers, predict_classes

MIN_WINDOWS = 10  # of fewer, one class for all may be chance
NAMED_SHARE = 0.95  # of the windows that a model predicts
NAMED_OTHERS_SHARE = 0.9  # of those of the other classes: a model that knows them is not meant


@dataclass(frozen=True)
class SingleClassFinding:
    """A source that names one class for nearly all windows.

    Attributes:
        source: A modality, or the fusion.
        fold: Whose model it is.
        label: The class.
        n_named: Windows for which it names the class, of `n_windows` that it predicts.
        true_share: Share of these windows that are of the class.
    """

    source: str
    fold: int
    label: int
    n_named: int
    n_windows: int
    true_share: float


def find_single_classes(windows: pd.DataFrame, sources: Sequence[str]) -> list[SingleClassFinding]:
    """Find the sources that name one class for nearly all windows, of the other classes too, fold by fold.

    Args:
        windows: Predictions, one row a window, with a column `fold` where they are of several models. Where numbers are
            predicted there are no classes, and nothing is found.
    """
    if holds_numbers(windows):
        return []
    folds = windows["fold"].to_numpy() if "fold" in windows else np.zeros(len(windows), int)
    findings: list[SingleClassFinding] = []
    for fold in np.unique(folds):
        own = windows[folds == fold]
        for source in sources:
            finding = _find_single_class(own, source, int(fold))
            findings += [finding] if finding else []
    return findings


def _find_single_class(windows: pd.DataFrame, source: str, fold: int) -> SingleClassFinding | None:
    if f"{source}.{LOGIT_PREFIX}0" not in windows:
        return None
    guess, true = predict_classes(windows, source), windows["label"].to_numpy()
    guess, true = guess[guess >= 0], true[guess >= 0]
    if len(guess) < MIN_WINDOWS:
        return None
    label = int(np.bincount(guess).argmax())
    named, others = guess == label, true != label
    if not others.any() or named.mean() < NAMED_SHARE or named[others].mean() < NAMED_OTHERS_SHARE:
        return None
    return SingleClassFinding(source, fold, label, int(named.sum()), len(guess), float(1 - others.mean()))


def describe_single_class(
    finding: SingleClassFinding, classes: Sequence[str], experiment: Experiment, *, n_folds: int = 1
) -> str:
    """Describe a finding and its remedy, in one line.

    Args:
        experiment: Of the model, which says whether classes are weighed already.
        n_folds: Of the predictions; of several, the fold is named.
    """
    name, share = classes[finding.label], f"{100 * finding.true_share:.1f} %"
    fold = f", in fold {finding.fold}," if n_folds > 1 else ""
    return (
        f"{finding.source}{fold} names {name} for {finding.n_named} of {finding.n_windows} windows, of which {share} "
        f"are: it does not tell classes apart; {_describe_remedy(finding, len(classes), experiment)}"
    )


def _describe_remedy(finding: SingleClassFinding, n_classes: int, experiment: Experiment) -> str:
    e, section = experiment, "optim"
    is_encoder = finding.source in e.data.modalities and (e.train.mode != "end_to_end" or len(e.data.modalities) == 1)
    optim = e.optim
    if is_encoder or len(e.data.modalities) == 1:
        (modality,) = [finding.source] if is_encoder else e.data.modalities
        section, optim = f"train.encoders.{modality}", e.train.encoders[modality]
    is_unequal = finding.true_share * n_classes > IMBALANCE_RATIO
    if is_unequal and optim.class_weights is False:
        return f"weigh the classes: {section}.class_weights=true"
    weighed = "classes are weighed already, so try" if is_unequal else "try"
    return f"{weighed} another {section}.lr, more {section}.epochs, or a search (`eav search`)"


def list_single_class_lines(
    windows: pd.DataFrame, sources: Sequence[str], classes: Sequence[str], experiment: Experiment
) -> list[str]:
    """List a line a finding, of the modalities and the fusion."""
    n_folds = int(windows["fold"].nunique()) if "fold" in windows else 1
    return [
        describe_single_class(finding, classes, experiment, n_folds=n_folds)
        for finding in find_single_classes(windows, sources)
    ]
