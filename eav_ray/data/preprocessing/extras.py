"""Check that the optional packages that a preprocessing wants are installed."""

from eav_ray.config import Experiment
from eav_ray.data.io import face_crop
from eav_ray.data.preprocessing import eeg_ica


def require_preprocessing_extras(experiment: Experiment) -> None:
    """Raise ConfigError where the experiment asks for what an optional package does, and it is not installed."""
    preprocessing, modalities = experiment.preprocessing, experiment.data.modalities
    if "eeg" in modalities and preprocessing.eeg.artefacts != "none":
        eeg_ica.require_ica_packages()
    if "video" in modalities and preprocessing.video.crop == "face":
        face_crop.require_face_detector()
