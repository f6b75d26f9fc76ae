"""The public functions of the package: what the commands do, from Python.

`eav_ray` itself hands them out, and imports them when they are first used. Progress goes to stderr. Relative paths of
an experiment are relative to the current folder.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.recordings import MAX_RECORDING_S
from eav_ray.data.streaming.local_recording import EEGSource, FeatureSource, MediaSource, make_upload
from eav_ray.data.streaming.upload import Upload, UploadLimits
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation import predictor
from eav_ray.evaluation.expected_result import get_expected_result
from eav_ray.evaluation.subject_measurement import MIN_WINDOWS, SubjectMeasurement
from eav_ray.evaluation.window_predictor import join_reasons
from eav_ray.prediction import Prediction, make_recording_prediction
from eav_ray.reading import read_epochs, read_predictions, read_results, read_windows

if TYPE_CHECKING:  # the functions that need Ray import it when they are called
    from eav_ray.pipelines.evaluate.evaluate import EvaluationResult
    from eav_ray.pipelines.preprocess.preprocess import PreprocessingResult
    from eav_ray.pipelines.search.search_store import SearchResult
    from eav_ray.pipelines.train.cross_validation import CVReport

__all__ = [
    "Experiment",
    "Prediction",
    "Predictor",
    "cross_validate",
    "evaluate",
    "load_experiment",
    "preprocess",
    "read_epochs",
    "read_predictions",
    "read_results",
    "read_windows",
    "search",
    "train",
]


def preprocess(experiment: Experiment) -> "PreprocessingResult":
    """Clean raw recordings and write their windows to shards. What is finished is skipped.

    Args:
        experiment: Its `data` names the recordings, its `preprocessing` the steps, `store.shards` where shards go.

    Returns:
        The index of the shards, the recordings and files that could not be used (`problems`), and the quality of the
        signals by recording.

    Raises:
        ConfigError: The experiment does not fit this machine.
        DataError: No recording can be used, or some cannot and `preprocessing.on_bad=fail`.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV"})
        >>> result = eav_ray.preprocess(experiment)
        >>> result.index.classes
        ('Neutral', 'Sadness', 'Anger', 'Happiness', 'Calmness')
    """
    from eav_ray.pipelines.preparation import prepare_experiment
    from eav_ray.pipelines.preprocess.preprocess import preprocess as preprocess_dataset

    with contextlib.redirect_stdout(sys.stderr):
        return preprocess_dataset(prepare_experiment(experiment, ("shards",)))


def train(experiment: Experiment, *, all_subjects: bool = False, searched: bool = False) -> str:
    """Train one fold of the experiment's protocol, or a final model on all subjects; or continue it.

    Args:
        experiment: Its `split.index` is the fold; its shards must be there.
        all_subjects: Train a final model. No recording is left that could test it: it carries the result of the
            experiment's protocol, which `cross_validate` has to have found (`Predictor.expected_result`).
        searched: Of a final model: take the settings that `cross_validate(..., search_folds=True)` found, or where that
            has not been run, `search`.

    Returns:
        The path of the finished checkpoint, which `Predictor` and `evaluate` take.

    Raises:
        ConfigError: The experiment does not fit its data or this machine.
        DataError: The shards are missing or damaged, or no protocol has found what a final model is worth.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV", "data.modalities": ["eeg"]})
        >>> path = eav_ray.train(experiment)
        >>> eav_ray.Predictor(path).modalities
        ('eeg',)
        >>> report = eav_ray.cross_validate(experiment)
        >>> final = eav_ray.Predictor(eav_ray.train(experiment, all_subjects=True))
        >>> final.expected_result["subjects"]
        3
    """
    from eav_ray.pipelines.preparation import prepare_experiment

    if all_subjects:
        from eav_ray.pipelines.evaluate.final_model import train_final_model

        with contextlib.redirect_stdout(sys.stderr):
            return train_final_model(prepare_experiment(experiment), searched=searched).path
    from eav_ray.pipelines.train.train import train as train_fold

    with contextlib.redirect_stdout(sys.stderr):
        return train_fold(prepare_experiment(experiment)).path


def cross_validate(experiment: Experiment, *, search_folds: bool = False) -> "CVReport":
    """Train and test all folds of the experiment's protocol, each tested once by its own model.

    Args:
        experiment: `split.index` does not matter.
        search_folds: Search every fold first, on inner folds of its own training subjects.

    Returns:
        The predictions of all folds, a reason for each fold that failed, and the table as text.

    Raises:
        ConfigError: A fold that cannot be made of these subjects.
        DataError: The shards are missing, or not one fold could be scored.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV", "data.modalities": ["eeg"]})
        >>> report = eav_ray.cross_validate(experiment)
        >>> sorted(report.result.predictions["subject"].unique())
        ['subject1', 'subject2', 'subject3']
    """
    from eav_ray.pipelines.preparation import prepare_experiment
    from eav_ray.pipelines.search.nested_cv import cross_validate_nested
    from eav_ray.pipelines.train.cross_validation import cross_validate as cross_validate_protocol

    run = cross_validate_nested if search_folds else cross_validate_protocol
    with contextlib.redirect_stdout(sys.stderr):
        return run(prepare_experiment(experiment))


def search(experiment: Experiment) -> "SearchResult":
    """Search `search.space` on inner folds of the training subjects, then train the best candidate on all of them.

    Args:
        experiment: Its `search` names the space, the number of candidates and the sampler.

    Returns:
        The best candidate with its changes and its score on inner folds, and the path of its checkpoint.

    Raises:
        ConfigError: A space with a candidate that cannot be trained, or more than this machine holds.
        DataError: The shards are missing, or not one candidate has a score.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV"})
        >>> best = eav_ray.search(experiment)
        >>> sorted(best.candidate.changes) == sorted(experiment.search.space)
        True
        >>> eav_ray.Predictor(best.path).modalities
        ('audio', 'eeg', 'video')
    """
    from eav_ray.pipelines.preparation import prepare_experiment
    from eav_ray.pipelines.search.search import search_experiment

    with contextlib.redirect_stdout(sys.stderr):
        return search_experiment(prepare_experiment(experiment))


def evaluate(experiment: Experiment, checkpoint: str | Path, *, out: str | Path = "") -> "EvaluationResult":
    """Test a checkpoint once on the test side of its split, audit it for leaks, and write the results page.

    Args:
        experiment: Names the shards; where they are of another data set, the checkpoint is tested on that.
        checkpoint: The path that `train` returns, or a name in the experiment's results store, such as `"latest"`.
        out: Folder of the page; by default in the results store.

    Returns:
        Whether each recording was predicted correctly by each modality and the fusion, the tests between them, the
        table as text, and the path of the page.

    Raises:
        ConfigError: The checkpoint was trained on other windows.
        DataError: The checkpoint is damaged or not finished, or it fails the audit.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV"})
        >>> result = eav_ray.evaluate(experiment, eav_ray.train(experiment))
        >>> sorted(set(result.correct) & {"audio", "eeg", "fusion", "video"})
        ['audio', 'eeg', 'fusion', 'video']
    """
    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.evaluate.evaluate import evaluate_checkpoint
    from eav_ray.pipelines.inference.checkpoint_names import find_checkpoint_path
    from eav_ray.pipelines.preparation import prepare_experiment

    folder = resolve_user_path("out", str(out))
    with contextlib.redirect_stdout(sys.stderr):
        prepared = prepare_experiment(experiment)
        path = find_checkpoint_path(str(checkpoint), prepared.store.results)
        return evaluate_checkpoint(prepared, path, out=folder)


class Predictor:
    """Predict recordings with a checkpoint, in this process and without Ray.

    Args:
        checkpoint: A folder that `train`, `eav train` or `eav pull` made, one in `s3://` or `gs://`, or a name in the
            results store `results`, such as `"latest"`.
        device: Where to compute, such as `"cuda"`; by default a GPU if there is one.

    Attributes:
        classes: The classes that it knows; none where it predicts numbers.
        targets: The names of the numbers that it predicts; none where it predicts classes.
        modalities: The modalities that it was trained on.
        eeg_channels: The names of its EEG channels, in order; empty where they are not known.
        access: What it may know of a person whom it predicts (`split.access`).
        normalised: The modalities that it normalises within people: `measure_subject` comes before `predict`.
        expected_result: Of a final model, which all subjects trained: what the protocol of its settings found on
            subjects whom its models never saw (`scores` by source, `recordings`, `subjects`). None of any other.

    Raises:
        DataError: There is no such checkpoint, or it is damaged or not finished.

    Example:
        >>> import eav_ray
        >>> predictor = eav_ray.Predictor("best")
        >>> prediction = predictor.predict(audio="speech.wav", video="face.mp4")
        >>> prediction.predicted in predictor.classes
        True
        >>> prediction.used, prediction.not_used
        (('audio', 'video'), {'eeg': 'not sent'})
        >>> round(sum(prediction.probabilities.values()), 6)
        1.0
        >>> [window.start_s for window in prediction.windows]
        [0, 5]
    """

    def __init__(self, checkpoint: str | Path, *, device: str = "") -> None:
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        from eav_ray.pipelines.inference.checkpoint_names import find_checkpoint

        opened = find_checkpoint(str(checkpoint), "results")
        self._split = opened.experiment.split
        self._predictor = predictor.Predictor(opened, torch.device(name))
        self.classes: tuple[str, ...] = self._predictor.classes
        self.targets: tuple[str, ...] = self._predictor.targets
        self.modalities: tuple[str, ...] = self._predictor.modalities
        self.eeg_channels: tuple[str, ...] = self._predictor.inputs.eeg_channel_names
        self.access: str = self._split.access
        self.normalised: tuple[str, ...] = self._predictor.subject_normalised
        self.expected_result: dict[str, Any] | None = get_expected_result(opened)
        self._measurement: SubjectMeasurement | None = None

    def measure_subject(self, recordings: Sequence[Mapping[str, Any]]) -> int:
        """Measure by what the features of a person are normalised, over recordings without labels.

        What is predicted from then on is taken for that person's; of the next person it is called again.

        Args:
            recordings: All that there are of the person, in time order, each of them the arguments of `predict`. With
                `access="unlabelled_first_n"` only the first n count.

        Returns:
            How many of them counted.

        Raises:
            ConfigError: The checkpoint does not normalise, or none is given.
            DataError: They have less than two windows that can be used; of one alone there is no SD.

        Example:
            >>> import eav_ray
            >>> predictor = eav_ray.Predictor("normalised")
            >>> predictor.access, predictor.normalised
            ('unlabelled_block', ('audio',))
            >>> predictor.measure_subject([{"audio": "speech.wav"}, {"audio": "later.wav"}])
            2
            >>> predictor.predict(audio="speech.wav").used
            ('audio',)
        """
        if not self.normalised:
            raise ConfigError("this model does not normalise within people: predict without measuring them")
        counted = list(recordings)
        if self.access != "unlabelled_block":
            counted = counted[: self._split.access_recordings]
        if not counted:
            raise ConfigError('give recordings of the person, such as [{"audio": "speech.wav"}]')
        self._measurement = None  # nobody is taken for the person before
        total, reasons = SubjectMeasurement(), dict[str, str]()
        for each in counted:
            found, not_measured = self._predictor.measure_upload(self._make_upload(**each), self._make_limits())
            total += found
            reasons |= not_measured
        if not any(total.has(m) for m in self.normalised):
            n_windows = max(total.n_windows.values(), default=0)
            described = join_reasons(reasons)
            raise DataError(
                f"the recordings have {n_windows} windows by which the person can be measured; at least {MIN_WINDOWS} "
                f"that differ are needed{f' ({described})' if described else ''}"
            )
        self._measurement = total
        return len(counted)

    def predict(
        self,
        *,
        eeg: EEGSource | None = None,
        audio: MediaSource | None = None,
        video: MediaSource | None = None,
        eeg_hz: float | None = None,
        eeg_channels: Sequence[str] = (),
        eeg_unit: str = "auto",
        audio_hz: int | None = None,
        video_fps: float | None = None,
        features: Mapping[str, FeatureSource] | None = None,
        features_hz: Mapping[str, float] | None = None,
    ) -> Prediction:
        """Predict one recording from whatever there is of it, as it was preprocessed for training.

        Args:
            eeg: A file of any format that `mne.io.read_raw` knows, an `mne.io.Raw`, or (channels, samples).
            audio: A sound file or a film, or (samples,) or (samples, channels): floats in [-1, 1] or 16-bit integers.
            video: A film, or (frames, height, width, 3) uint8 RGB.
            eeg_hz: The rate of an array, samples a second.
            eeg_channels: The names of an array's channels, by which they are brought into the order of training;
                without names they must be in it.
            eeg_unit: The unit of an array: `"microvolt"`, `"volt"`, or `"auto"` to tell by its size.
            audio_hz: The rate of an array, samples a second.
            video_fps: The rate of an array, frames a second.
            features: Given features by name: a file (.npy, .safetensors, .parquet), one row (features,) of the whole
                recording, or (rows, features) at a rate.
            features_hz: The rate of such rows by name, rows a second.

        Returns:
            The prediction of the recording, and of its windows. A modality that cannot be used is in `not_used`.

        Raises:
            ConfigError: Nothing is given, or an array without its rate or of another shape.
            ConfigError: The person has not been measured, by whom the checkpoint normalises (`measure_subject`).
            DataError: Nothing that is given can be used; the text says why.

        Example:
            >>> import eav_ray, mne, soundfile
            >>> predictor = eav_ray.Predictor("best")
            >>> raw = mne.io.read_raw("recorded_raw.fif", verbose="ERROR")
            >>> samples, rate = soundfile.read("speech.wav")
            >>> prediction = predictor.predict(eeg=raw, audio=samples, audio_hz=rate)
            >>> prediction.used
            ('audio', 'eeg')
        """
        if self.normalised and self._measurement is None:
            raise ConfigError(
                f"this model normalises {', '.join(self.normalised)} within people (split.access={self.access}): give "
                "recordings of the person to measure_subject first"
            )
        upload = self._make_upload(
            eeg=eeg,
            audio=audio,
            video=video,
            eeg_hz=eeg_hz,
            eeg_channels=eeg_channels,
            eeg_unit=eeg_unit,
            audio_hz=audio_hz,
            video_fps=video_fps,
            features=features,
            features_hz=features_hz,
        )
        return make_recording_prediction(self._predictor.predict_upload(upload, self._make_limits(), self._measurement))

    def _make_upload(self, **given: Any) -> Upload:
        return make_upload(**given, known_eeg_names=self.eeg_channels, feature_names=self._predictor.feature_names)

    def _make_limits(self) -> UploadLimits:
        return UploadLimits(MAX_RECORDING_S, self._predictor.preprocessing.file_timeout_s)
