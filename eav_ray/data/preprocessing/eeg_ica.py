"""Artefacts of one EEG recording: independent components that ICLabel knows.

ICA by Picard in its extended-infomax form (Ablin et al. 2018), labels by ICLabel (Pion-Tonachini et al. 2019,
NeuroImage 198) through mne-icalabel, whose network comes inside the package and runs under onnxruntime. What it wins is
in docs/results/eeg_cleaning.md.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import mne
import numpy as np

from eav_ray.config.extras import require_extra
from eav_ray.errors import DataError

REQUIRED_PACKAGES = {"mne_icalabel": "mne-icalabel", "picard": "python-picard", "onnxruntime": "onnxruntime"}
LABELS_BY_KIND = {  # in ICLabel's spelling
    "blinks": ("eye blink",),
    "all": ("eye blink", "muscle artifact", "heart beat", "line noise", "channel noise"),
}
MIN_PROBABILITY = 0.5  # probability of the label from which a component is taken out
LOW_HZ, HIGH_HZ = 1.0, 100.0  # what ICLabel was trained on
MIN_CHANNELS = 8  # channels: the maps of fewer tell components not apart
SAMPLES_PER_WEIGHT = 20  # of which ICA wants as many for each of its n x n weights


def require_ica_packages() -> None:
    """Raises ConfigError, with the command to type, where a package is missing."""
    require_extra("artefacts", "preprocessing.eeg.artefacts", REQUIRED_PACKAGES, "set preprocessing.eeg.artefacts=none")


def estimate_artifacts(
    x_CT: np.ndarray, hz: float, channels: Sequence[str], montage: Any, kind: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What of a recording is artefact; the recording less this is clean.

    Args:
        x_CT: Broadband EEG of good channels with known positions, microvolts, offsets removed.
        kind: A key of `LABELS`.
    Returns:
        The artefacts' part of it, of the same shape; and the label of each component that makes it up.
    Raises:
        DataError: Fewer than 8 channels.
    """
    if len(channels) < MIN_CHANNELS:
        raise DataError(
            f"preprocessing.eeg.artefacts needs at least {MIN_CHANNELS} good channels with a known position, this "
            f"recording has {len(channels)}; leave it out, or set preprocessing.eeg.artefacts=none"
        )
    from mne_icalabel import label_components

    info = mne.create_info(list(channels), hz, "eeg", verbose="ERROR")
    broadband = mne.io.RawArray(x_CT * 1e-6, info, verbose="ERROR")
    broadband.set_montage(montage, verbose="ERROR")
    broadband.set_eeg_reference("average", projection=False, verbose="ERROR")
    band_limited = broadband.copy().filter(LOW_HZ, min(HIGH_HZ, hz / 2 - 1), method="iir", verbose="ERROR")
    # The average reference takes one dimension; few samples cannot tell many components apart.
    count = min(len(channels) - 1, int((x_CT.shape[1] / SAMPLES_PER_WEIGHT) ** 0.5))
    options: Any = {"method": "picard", "fit_params": {"ortho": False, "extended": True}, "max_iter": "auto"}
    ica = mne.preprocessing.ICA(count, **options, random_state=0, verbose="ERROR")
    with warnings.catch_warnings():
        # Not converged after 200 rounds: what it has by then is labelled all the same. ICLabel remarks on rates below
        # 200 Hz and on filters that it would have set otherwise.
        warnings.simplefilter("ignore")
        ica.fit(band_limited, verbose="ERROR")
        labelled = label_components(band_limited, ica, method="iclabel")
    artifact_components = [
        (k, str(label))
        for k, (label, sure) in enumerate(zip(labelled["labels"], labelled["y_pred_proba"], strict=True))
        if label in LABELS_BY_KIND[kind] and sure >= MIN_PROBABILITY
    ]
    if not artifact_components:
        return np.zeros_like(x_CT), ()
    cleaned = ica.apply(broadband.copy(), exclude=[k for k, _ in artifact_components], verbose="ERROR")
    part_CT = (broadband.get_data() - cleaned.get_data()) * 1e6
    return part_CT, tuple(label for _, label in artifact_components)
