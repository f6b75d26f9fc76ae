"""Audio corrupted as decoded: mono, at the file's rate, before it is resampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfiltfilt

from eav_ray.data.corruptions.base import Corruption, draw_lost_blocks, scale_to_snr
from eav_ray.data.io import audio
from eav_ray.data.recordings import Recording
from eav_ray.errors import DataError

N_TALKERS = 4  # people who speak at once
SILENCE_S = 0.5
FILTER_ORDER = 8  # of the low-pass, forwards and backwards


@dataclass(frozen=True)
class AudioCorruption:
    """What `audio.read_audio` takes: one corruption of one recording.

    Args:
        speech_files: (person, path) of all speech of the data set, of which babble is made; their own is skipped.
    """

    corruption: Corruption
    recording: Recording
    speech_files: tuple[tuple[str, str], ...] = ()

    def __call__(self, x_T: np.ndarray, hz: int) -> np.ndarray:
        """Corrupt one signal; the same length, within [-1, 1].

        The ratio of signal to noise is that of the mean squares over the whole recording. Where the sum exceeds full
        scale both are turned down, as who records would.

        Args:
            x_T: (samples,) in [-1, 1].
        Raises:
            DataError: Babble is asked for, and nobody else speaks.
        """
        corruption = self.corruption
        if corruption.is_identity:
            return x_T
        rng, x = corruption.make_rng(self.recording.id), x_T.astype(np.float64)
        match corruption.name:
            case "babble":
                x = self._add_noise(x, self._make_babble(rng, len(x), hz))
            case "gaussian":
                x = self._add_noise(x, rng.standard_normal(len(x)))
            case "clipping":
                limit = float(np.abs(x).max()) * 10 ** (-corruption.level / 20)
                x = np.clip(x, -limit, limit)
            case "band":
                if corruption.level < hz / 2:
                    sos = butter(FILTER_ORDER, corruption.level, fs=hz, output="sos")
                    x = np.clip(sosfiltfilt(sos, x, padlen=min(3 * FILTER_ORDER, len(x) - 1)), -1, 1)
            case "silence":
                block = np.arange(len(x)) // max(1, int(SILENCE_S * hz))
                x[draw_lost_blocks(rng, int(block[-1]) + 1, corruption.level)[block]] = 0
            case _:
                raise AssertionError(corruption.name)
        return x.astype(x_T.dtype)

    def _add_noise(self, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
        mixed = x + scale_to_snr(noise, np.square(x).mean(), self.corruption.level)
        return mixed / max(1.0, float(np.abs(mixed).max()))

    def _make_babble(self, rng: np.random.Generator, count: int, hz: int) -> np.ndarray:
        """Several people at once, equally loud, each from somewhere in a recording of theirs, which begins anew."""
        total, n_talkers = np.zeros(count), 0
        for path in shuffle_talkers(rng, self.recording.subject, self.speech_files):
            try:
                voice = audio.read_audio(path, hz).astype(np.float64)
            except DataError:
                continue  # a file that is damaged is reported where it is itself read
            rms = float(np.sqrt(np.square(voice).mean()))
            if rms < 1e-5:
                continue
            start = int(rng.integers(len(voice)))
            total += np.resize(np.roll(voice, -start), count) / rms
            n_talkers += 1
            if n_talkers == N_TALKERS:
                return total
        if not n_talkers:
            raise DataError(f"{self.recording.id}: there is no speech of anybody else to make babble of")
        return total


def shuffle_talkers(rng: np.random.Generator, subject: str, speech_files: Sequence[tuple[str, str]]) -> list[str]:
    """Speech of other people in an order drawn at random: one recording of each first, then others of theirs."""
    drawn = [speech_files[n] for n in rng.permutation(len(speech_files)) if speech_files[n][0] != subject]
    turns: dict[str, int] = {}
    order = []
    for n, (talker, _) in enumerate(drawn):
        turns[talker] = turns.get(talker, -1) + 1
        order.append((turns[talker], n))
    return [drawn[n][1] for _, n in sorted(order)]
