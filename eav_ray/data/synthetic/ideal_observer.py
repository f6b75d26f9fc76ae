"""Compute the best accuracy that synthetic recordings allow."""

from collections.abc import Sequence

import numpy as np

from eav_ray.errors import ConfigError, suggest_nearest

CLASSES = ("Neutral", "Sadness", "Anger", "Happiness", "Calmness")


MODALITIES = ("audio", "eeg", "video")


USELESS_SHARE = 0.3  # of recordings, in one modality each, all present ones equally often


# P(latent | true class) in percent, a row per true class, in the order of CLASSES. No two classes are confused
# much by more than one modality: that is why the three together know far more than the best alone.
CONFUSION_PERCENT_BY_MODALITY: dict[str, tuple[tuple[int, ...], ...]] = {
    "audio": (  # hears arousal: anger and happiness are both loud and fast, sadness and calmness soft and slow
        (74, 2, 4, 18, 2),
        (1, 66, 1, 1, 31),
        (2, 1, 68, 28, 1),
        (2, 1, 28, 68, 1),
        (3, 29, 1, 1, 66),
    ),
    "eeg": (  # sees valence: neutral and calmness, the negative pair, and the positive pair
        (58, 4, 1, 1, 36),
        (4, 62, 32, 1, 1),
        (1, 32, 65, 1, 1),
        (1, 1, 2, 64, 32),
        (34, 1, 1, 2, 62),
    ),
    "video": (  # sees happiness best; sadness passes for neutral, suppressed anger too, calmness for a smile
        (72, 24, 1, 1, 2),
        (26, 70, 2, 1, 1),
        (22, 3, 73, 1, 1),
        (1, 1, 1, 88, 9),
        (4, 2, 1, 20, 73),
    ),
}


def get_confusion_matrix(modality: str) -> np.ndarray:
    """P(latent | true class) of a usable signal: (5, 5), rows sum to 1.

    Raises:
        ConfigError: There is no such modality.
    """
    if modality not in CONFUSION_PERCENT_BY_MODALITY:
        allowed = ", ".join(MODALITIES)
        raise ConfigError(f"no modality {modality!r}{suggest_nearest(modality, MODALITIES)} Allowed: {allowed}.")
    return np.array(CONFUSION_PERCENT_BY_MODALITY[modality]) / 100


def compute_joint_distribution(modalities: Sequence[str], present: Sequence[str]) -> dict[str | None, np.ndarray]:
    """P(class, latents, useless modality) with uniform classes.

    Returns:
        Useless modality, or None -> (5,) + (5,) * len(modalities). All entries together sum to 1.
    """
    matrices = {modality: get_confusion_matrix(modality) for modality in modalities}
    uninformative = np.full((len(CLASSES), len(CLASSES)), 1 / len(CLASSES))
    joint: dict[str | None, np.ndarray] = {}
    for useless in (None, *present):
        share = 1 - USELESS_SHARE if useless is None else USELESS_SHARE / len(present)
        table = np.full(len(CLASSES), share / len(CLASSES))
        for modality in modalities:
            matrix = uninformative if modality == useless else matrices[modality]
            shape = (len(CLASSES), *[1] * (table.ndim - 1), len(CLASSES))
            table = table[..., None] * matrix.reshape(shape)
        joint[useless] = table
    return joint


def find_cue_modality(useless: str, present: Sequence[str], cue: str) -> str:
    """The modality whose signal carries the cue that `useless` is useless."""
    return useless if cue == "own" else present[(present.index(useless) + 1) % len(present)]


def _check_modalities(modalities: Sequence[str], present: Sequence[str]) -> None:
    unknown = set(modalities) - set(present)
    if not modalities or unknown or len(set(modalities)) < len(modalities):
        raise ConfigError(f"modalities is {list(modalities)}; name some of {', '.join(present)}, each once")


def bayes_accuracy(modalities: Sequence[str], *, present: Sequence[str] = MODALITIES, cue: str = "own") -> float:
    """Accuracy of the ideal observer who sees these modalities and their cues, exactly.

    Per recording, uniform classes, over all recordings, the 30 % included. Enumerates latents and quality states.

    Args:
        present: What the recordings have: the useless modality is one of these. Listening has no audio.
        cue: As in `SyntheticSpec`.
    Raises:
        ConfigError: A modality that is unknown, absent or named twice, or none at all.
    """
    _check_modalities(modalities, present)
    by_known_useless: dict[str | None, np.ndarray] = {}
    for useless, table in compute_joint_distribution(modalities, present).items():
        # A cue elsewhere goes unnoticed; one here of what is useless elsewhere says what can be trusted.
        state = useless if useless and find_cue_modality(useless, present, cue) in modalities else None
        by_known_useless[state] = by_known_useless.get(state, 0) + table
    return float(sum(table.max(axis=0).sum() for table in by_known_useless.values()))
