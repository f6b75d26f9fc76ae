"""The feature extractor of transformers' Audio Spectrogram Transformer, in double precision."""

from unittest import mock

import numpy as np
from transformers import ASTFeatureExtractor
from transformers.models.audio_spectrogram_transformer import feature_extraction_audio_spectrogram_transformer as module


class LibraryExtractor:
    """Extract as transformers does where torchaudio is not installed.

    With it, the same features are computed in single precision, which is up to 0.013 off in bins that hold next to
    nothing: it is no reference for a tolerance of 0.001.
    """

    def __init__(self, max_length: int) -> None:
        with mock.patch.object(module, "is_speech_available", lambda: False):
            self._extract = ASTFeatureExtractor(max_length=max_length)

    def __call__(self, sounds: list[np.ndarray] | np.ndarray, sampling_rate: int) -> np.ndarray:
        with mock.patch.object(module, "is_speech_available", lambda: False):
            return self._extract(sounds, sampling_rate=sampling_rate, return_tensors="np")["input_values"]
