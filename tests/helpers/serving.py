"""A model that nobody trained, as small as the real classes go, and what a client may send it."""

import base64
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from eav_ray.config import Experiment, Preprocessing, load_experiment, override
from eav_ray.data.datasets.eav import EAV_CHANNELS, EAV_CLASSES
from eav_ray.evaluation.predictor import Predictor
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.checkpoint_files import Checkpoint
from tests.helpers import checkpoints
from tests.helpers.paths import TINY

EXPERIMENT = load_experiment(TINY)
EEG_HZ, AUDIO_HZ, FRAMES_HZ = 500, 16_000, 5


@cache
def make_checkpoint() -> Checkpoint:
    return make_untrained_checkpoint(EXPERIMENT)


def make_untrained_checkpoint(experiment: Experiment) -> Checkpoint:
    torch.manual_seed(0)
    shapes = DataShapes(len(EAV_CHANNELS), len(EAV_CLASSES), EAV_CHANNELS)
    model = Classifier(experiment, shapes)
    model.normalise.sd.fill_(20.0)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return checkpoints.make_checkpoint(experiment, EAV_CLASSES, key="tiny", shapes=shapes, weights=weights)


def write_normalising_checkpoint(folder: Path, **changes: Any) -> str:
    """Write one that normalises audio within subjects, and whatever else the changes say."""
    e = override(
        EXPERIMENT,
        {
            "data.modalities": ["audio"],
            "model.audio": {"kind": "mfcc", "width": 16, "segments": 2, "subject_normalisation": "standardise"},
            "split.access": "unlabelled_block",
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )
    return checkpoints.save_checkpoint(Store(folder), make_untrained_checkpoint(e)).path


@cache
def make_predictor() -> Predictor:
    return Predictor(make_checkpoint(), torch.device("cpu"))


def write_checkpoint(folder: Path) -> str:
    return checkpoints.save_checkpoint(Store(folder), make_checkpoint()).path


def get_preprocessing() -> Preprocessing:
    return EXPERIMENT.preprocessing


class Sent:
    """Noise of some seconds, in each form in which it can be sent."""

    def __init__(self, seconds: float, seed: int = 0, frames_hz: int = FRAMES_HZ) -> None:
        rng = np.random.default_rng(seed)
        self.seconds, self.frames_hz = seconds, frames_hz
        common_T = rng.normal(0, 20, round(seconds * EEG_HZ))  # what all of a scalp hears
        own_CT = rng.normal(0, 10, (len(EAV_CHANNELS), len(common_T)))
        self.eeg_CT = (common_T + own_CT).astype(np.float32)
        self.audio_T = rng.integers(-9000, 9000, round(seconds * AUDIO_HZ)).astype(np.int16)
        self.frames = [draw_jpeg(rng) for _ in range(round(seconds * frames_hz))]

    @property
    def wav(self) -> bytes:
        sink = io.BytesIO()
        soundfile.write(sink, self.audio_T, AUDIO_HZ, format="WAV", subtype="PCM_16")
        return sink.getvalue()

    def tree(self, *modalities: str) -> dict[str, Any]:
        whole = {
            "eeg": {
                "hz": EEG_HZ,
                "channels": list(EAV_CHANNELS),
                "unit": "microvolt",
                "values": base64.b64encode(self.eeg_CT.astype("<f4").tobytes()).decode(),
            },
            "audio": base64.b64encode(self.wav).decode(),
            "video": {"hz": self.frames_hz, "frames": [base64.b64encode(f).decode() for f in self.frames]},
        }
        return {m: whole[m] for m in modalities or whole}

    def messages(self, *modalities: str, piece_s: float = 0.2, at_s: float = 100.0) -> Iterator[tuple[float, bytes]]:
        """(time, message), in the order in which a recorder would send them: a piece when it is whole."""
        found: list[tuple[float, bytes]] = []
        for k in range(round(self.seconds / piece_s)):
            start, stop = k * piece_s, (k + 1) * piece_s
            time_s = at_s + start
            if not modalities or "eeg" in modalities:
                x_CT = self.eeg_CT[:, round(start * EEG_HZ) : round(stop * EEG_HZ)]
                found.append((at_s + stop, encode_eeg(time_s, x_CT)))
            if not modalities or "audio" in modalities:
                x_T = self.audio_T[round(start * AUDIO_HZ) : round(stop * AUDIO_HZ)]
                found.append((at_s + stop, encode_audio(time_s, x_T)))
        if not modalities or "video" in modalities:
            found += [
                (at_s + k / self.frames_hz, encode_video(at_s + k / self.frames_hz, f))
                for k, f in enumerate(self.frames)
            ]
        yield from sorted(found, key=lambda pair: pair[0])


def encode_message(payload: bytes, **header: Any) -> bytes:
    return json.dumps(header).encode() + b"\n" + payload


def encode_eeg(time_s: float, x_CT: np.ndarray, **changes: Any) -> bytes:
    header = {"modality": "eeg", "time": time_s, "hz": EEG_HZ, "channels": list(EAV_CHANNELS), "unit": "microvolt"}
    return encode_message(x_CT.T.astype("<f4").tobytes(), **header | changes)


def encode_audio(time_s: float, x_T: np.ndarray, **changes: Any) -> bytes:
    header = {"modality": "audio", "time": time_s, "hz": AUDIO_HZ, "dtype": "int16"}
    return encode_message(x_T.astype("<i2").tobytes(), **header | changes)


def encode_video(time_s: float, file: bytes) -> bytes:
    return encode_message(file, modality="video", time=time_s)


def draw_jpeg(rng: np.random.Generator, size: tuple[int, int] = (48, 64)) -> bytes:
    sink = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8))
    small.resize((size[1], size[0])).save(sink, "JPEG", quality=90)
    return sink.getvalue()
