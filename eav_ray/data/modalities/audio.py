"""Windows of audio: mono samples in [-1, 1]."""

from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.base import Modality, RecordingSignals, WindowDescription, center_courses

FULL_SCALE = 0.999
NOISE_LEVEL = 0.1
# A fingerprint is a spectrogram that is fine in frequency, as it shows the pitch, which two takes of a sentence do not
# share, and coarse in time. Below 2 kHz all codecs keep everything.
FINGERPRINT_STEPS_PER_S, FINGERPRINT_SPECTRUM_S = 12.5, 0.256
FINGERPRINT_BANDS, FINGERPRINT_MAX_HZ = 64, 2000
FINGERPRINT_FLOOR = 1e-2  # of the loudest band of a window, below which there may be noise
BLOCK = 32  # windows whose spectra are in memory at once
# Of what baselines read: silence begins this far below the loudest part; spectra of 32 ms every 10 ms.
SILENCE_DB, N_CEPSTRA, N_MELS, N_FFT, HOP_SAMPLES = 30, 30, 64, 512, 160


class Audio(Modality):
    name = "audio"
    dtype = np.float32
    quality_columns = averaged_columns = ("audio_db", "audio_clipped")  # RMS, dB of full scale; share at full scale
    duplicate_similarity = 0.9
    baseline_title = "MFCC + log-mel"
    baseline_kinds = ("svm", "logistic")

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        return (preprocessing.audio.hz * preprocessing.window_s,)

    def describe_window(self, preprocessing: Preprocessing) -> WindowDescription:
        return WindowDescription(("sample",), "full scale is -1 to 1", preprocessing.audio.hz)

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        rms = float(np.sqrt(np.mean(np.square(window, dtype=np.float64))))
        clipped = float((np.abs(window) >= FULL_SCALE).mean())
        return {"audio_db": 20 * np.log10(max(rms, 1e-6)), "audio_clipped": clipped}

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (NOISE_LEVEL * rng.standard_normal(shape)).astype(np.float32)

    def compute_fingerprint(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """(windows, samples) to (windows, steps, 64): log power in bands of 31 Hz, 12.5 steps a second."""
        hz = preprocessing.audio.hz
        size, hop = int(FINGERPRINT_SPECTRUM_S * hz), int(hz / FINGERPRINT_STEPS_PER_S)
        n_bins = FINGERPRINT_MAX_HZ * size // hz
        taper = np.hanning(size).astype(np.float32)
        frames_BTN = np.lib.stride_tricks.sliding_window_view(windows, size, axis=1)[:, ::hop]
        power_BTF = np.empty((*frames_BTN.shape[:2], FINGERPRINT_BANDS), dtype=np.float32)
        for at in range(0, len(windows), BLOCK):
            spectrum = np.fft.rfft(frames_BTN[at : at + BLOCK] * taper)[..., 1 : n_bins + 1]
            bands = np.square(np.abs(spectrum)).reshape(*spectrum.shape[:2], FINGERPRINT_BANDS, -1)
            power_BTF[at : at + BLOCK] = bands.mean(-1)
        loudest_B11 = power_BTF.max((1, 2), keepdims=True)
        floor_B11 = np.where(loudest_B11 > 0, FINGERPRINT_FLOOR * loudest_B11, 1.0)
        # What is silent is masked as padding is: encoders turn the one into the other.
        return center_courses(np.log(power_BTF + floor_B11), power_BTF.max(-1) > floor_B11[..., 0])

    def compute_baseline_features(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Compute statistics of cepstra and of log-mel bands over the frames of each window, silent ends left out.

        Returns:
            (windows, 3 * 30 + 2 * 64): of 30 cepstral coefficients means, SDs and SDs of their first differences; of 64
            log-mel bands means and SDs, decibel.
        """
        return np.array([_compute_spectral_statistics(x, preprocessing.audio.hz) for x in windows], np.float64)


def _compute_spectral_statistics(x_T: np.ndarray, hz: int) -> np.ndarray:
    import librosa

    recorded = np.trim_zeros(x_T, "b")  # the end of a short recording is padding
    sound, _ = librosa.effects.trim(recorded if len(recorded) else x_T, top_db=SILENCE_DB)
    sound = np.pad(sound, (0, max(0, N_FFT - len(sound))))
    mel = librosa.feature.melspectrogram(y=sound, sr=hz, n_fft=N_FFT, hop_length=HOP_SAMPLES, n_mels=N_MELS)
    cepstra = librosa.feature.mfcc(y=sound, sr=hz, n_mfcc=N_CEPSTRA, n_fft=N_FFT, hop_length=HOP_SAMPLES)
    differences = librosa.feature.delta(cepstra, mode="nearest")  # which any number of frames has
    decibel = librosa.power_to_db(mel)
    return np.concatenate([cepstra.mean(1), cepstra.std(1), differences.std(1), decibel.mean(1), decibel.std(1)])
