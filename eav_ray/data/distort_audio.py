"""Audio disturbed as decoded: mono, at the file's rate, before it is resampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, sosfiltfilt

from eav_ray.data import audio
from eav_ray.data.distort import Distortion, at_snr, lapses
from eav_ray.data.manifest import Recording
from eav_ray.errors import DataError

TALKERS = 4  # people who speak at once
SILENCE_S = 0.5
ORDER = 8  # of the low-pass, forwards and backwards


@dataclass(frozen=True)
class AudioDistortion:
    """What `audio.read` takes: one distortion of one recording.

    Args:
        others: (person, path) of all speech of the data set, of which babble is made; the person's own is passed over.
    """

    distortion: Distortion
    recording: Recording
    others: tuple[tuple[str, str], ...] = ()

    def __call__(self, x_T: np.ndarray, hz: int) -> np.ndarray:
        """Disturb one signal; the same length, within [-1, 1].

        The ratio of signal to noise is that of the mean squares over the whole recording. Where the sum exceeds full
        scale both are turned down, as who records would.

        Args:
            x_T: (samples,) in [-1, 1].
        Raises:
            DataError: Babble is asked for, and nobody else speaks.
        """
        d = self.distortion
        if d.harmless:
            return x_T
        rng, x = d.rng(self.recording.id), x_T.astype(np.float64)
        match d.name:
            case "babble":
                x = self._noisy(x, self._babble(rng, len(x), hz))
            case "gaussian":
                x = self._noisy(x, rng.standard_normal(len(x)))
            case "clipping":
                top = float(np.abs(x).max()) * 10 ** (-d.level / 20)
                x = np.clip(x, -top, top)
            case "band":
                if d.level < hz / 2:
                    sos = butter(ORDER, d.level, fs=hz, output="sos")
                    x = np.clip(sosfiltfilt(sos, x, padlen=min(3 * ORDER, len(x) - 1)), -1, 1)
            case "silence":
                block = np.arange(len(x)) // max(1, int(SILENCE_S * hz))
                x[lapses(rng, int(block[-1]) + 1, d.level)[block]] = 0
            case _:
                raise AssertionError(d.name)
        return x.astype(x_T.dtype)

    def _noisy(self, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
        mixed = x + at_snr(noise, np.square(x).mean(), self.distortion.level)
        return mixed / max(1.0, float(np.abs(mixed).max()))

    def _babble(self, rng: np.random.Generator, count: int, hz: int) -> np.ndarray:
        """Several people at once, equally loud, each from somewhere in a recording of theirs, which begins anew."""
        total, speaking = np.zeros(count), 0
        for path in talkers(rng, self.recording.subject, self.others):
            try:
                voice = audio.read(path, hz).astype(np.float64)
            except DataError:
                continue  # a file that is damaged is told where it is itself read
            rms = float(np.sqrt(np.square(voice).mean()))
            if rms < 1e-5:
                continue
            start = int(rng.integers(len(voice)))
            total += np.resize(np.roll(voice, -start), count) / rms
            speaking += 1
            if speaking == TALKERS:
                return total
        if not speaking:
            raise DataError(f"{self.recording.id}: there is no speech of anybody else to make babble of")
        return total


def talkers(rng: np.random.Generator, subject: str, others: Sequence[tuple[str, str]]) -> list[str]:
    """Speech of other people in an order drawn at random: one recording of each first, then others of theirs."""
    drawn = [others[n] for n in rng.permutation(len(others)) if others[n][0] != subject]
    turn: dict[str, int] = {}
    order = []
    for n, (talker, _) in enumerate(drawn):
        turn[talker] = turn.get(talker, -1) + 1
        order.append((turn[talker], n))
    return [drawn[n][1] for _, n in sorted(order)]
