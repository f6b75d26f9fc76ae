"""Predict recordings with an exported folder by onnxruntime, without torch and without Ray."""

from pathlib import Path
from typing import Any

from eav_ray.data.recordings import MAX_RECORDING_S
from eav_ray.data.streaming.local_recording import make_upload
from eav_ray.data.streaming.upload import UploadLimits
from eav_ray.evaluation.onnx_predictor import OnnxWindowPredictor
from eav_ray.prediction import Prediction, make_recording_prediction


class OnnxPredictor:
    """Predict recordings, in this process, by the ONNX files of a folder that `eav export --onnx` wrote.

    Torch is imported only where an encoder starts at features that it computes (`starts_at` in `onnx/graph.json`).

    Args:
        folder: The exported folder, or one in `s3://` or `gs://`.
        n_threads: For one network; 0: as many as there are cores.

    Raises:
        ConfigError: onnxruntime is missing, the folder has no ONNX files, or the model normalises within people.
        DataError: There is no such folder, or it is damaged.

    Example:
        >>> from eav_ray.onnx_predictor import OnnxPredictor
        >>> predictor = OnnxPredictor("folder")
        >>> predictor.predict(audio="speech.wav").used
        ('audio',)
    """

    def __init__(self, folder: str | Path, *, n_threads: int = 0) -> None:
        self._predictor = OnnxWindowPredictor(folder, n_threads=n_threads)
        self.classes, self.targets = self._predictor.classes, self._predictor.targets
        self.modalities = self._predictor.modalities
        self.eeg_channels = self._predictor.inputs.eeg_channel_names

    def predict(self, **recording: Any) -> Prediction:
        """Predict one recording.

        Args:
            recording: The arguments of `eav_ray.Predictor.predict`.

        Raises:
            ConfigError: Nothing is given, or an array without its rate or of another shape.
            DataError: Nothing that is given can be used; the text says why.
        """
        names = tuple(self._predictor.preprocessing.features)
        upload = make_upload(**recording, known_eeg_names=self.eeg_channels, feature_names=names)
        limits = UploadLimits(MAX_RECORDING_S, self._predictor.preprocessing.file_timeout_s)
        return make_recording_prediction(self._predictor.predict_upload(upload, limits))
