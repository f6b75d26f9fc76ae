"""What can go wrong with a recording, in physical terms: the kinds, their steps of severity, and their randomness.

A corruption acts on the raw signal at its own rate, before any preprocessing, so that what the preprocessing takes out
of it is taken out. `corruptions/eeg.py`, `corruptions/audio.py` and `corruptions/video.py` say what each kind does.
What is drawn for a recording depends on the seed, its id and the kind alone: other recordings do not matter, and a
stronger step is more of the same noise, the same electrodes and a few more.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eav_ray.config import ModalityName
from eav_ray.errors import ConfigError, suggest_nearest

BLOCKS_PER_GROUP = 10  # blocks of time of which an exact share is lost


@dataclass(frozen=True)
class CorruptionKind:
    """One way to corrupt one modality."""

    modality: ModalityName
    unit: str  # of a level
    mildest: float
    strongest: float
    identity_level: float  # the level that changes nothing
    description: str
    log_scale: bool = False  # steps are ratios, not differences
    is_integer: bool = False  # levels are whole numbers


SNR_UNIT = "dB SNR"
INF = float("inf")
LOG = True  # of `log_scale`
# The milder end is what a good laboratory has on a bad day, the stronger what would be thrown away by hand.
CORRUPTION_KINDS: dict[str, CorruptionKind] = {
    "eeg.gaussian": CorruptionKind("eeg", SNR_UNIT, 10, -10, INF, "white noise of each channel's own"),
    "eeg.pink": CorruptionKind("eeg", SNR_UNIT, 10, -10, INF, "1/f noise of each channel's own, from 0.5 Hz"),
    "eeg.mains": CorruptionKind("eeg", SNR_UNIT, 0, -30, INF, "mains hum at 50 Hz and its third harmonic"),
    "eeg.dropout": CorruptionKind("eeg", "of electrodes flat", 0.1, 0.7, 0, "electrodes that have come off"),
    "eeg.drift": CorruptionKind("eeg", "uV at most", 50, 5000, 0, "electrodes that wander, as a random walk", LOG),
    "eeg.blinks": CorruptionKind("eeg", "uV at Fp", 100, 500, 0, "30 blinks a minute, strongest in front"),
    "eeg.muscle": CorruptionKind("eeg", SNR_UNIT, 10, -10, INF, "bursts of muscle, 20 to 150 Hz, in half of the time"),
    "audio.babble": CorruptionKind(
        "audio", SNR_UNIT, 10, -10, INF, "speech of four other people of the data set at once"
    ),
    "audio.gaussian": CorruptionKind("audio", SNR_UNIT, 20, -10, INF, "white noise"),
    "audio.clipping": CorruptionKind("audio", "dB below the peak", 10, 30, 0, "samples cut off at a level"),
    "audio.band": CorruptionKind("audio", "Hz", 4000, 1000, INF, "nothing above a frequency, as on a telephone", LOG),
    "audio.silence": CorruptionKind("audio", "of the time", 0.2, 0.8, 0, "half seconds without sound"),
    "video.blur": CorruptionKind("video", "% of the height", 1, 8, 0, "out of focus: SD of a Gaussian blur", LOG),
    "video.darkness": CorruptionKind("video", "stops", 1, 5, 0, "light halved again and again"),
    "video.occlusion": CorruptionKind("video", "of the picture", 0.1, 0.6, 0, "a black square in front of the camera"),
    "video.dropped": CorruptionKind(
        "video", "of the time", 0.3, 0.9, 0, "frames lost for half a second; the one before stays"
    ),
    "video.frozen": CorruptionKind("video", "of the time", 0.3, 0.9, 0, "the picture stands still for two seconds"),
    "video.compression": CorruptionKind(
        "video", "JPEG quality", 20, 2, INF, "each frame encoded as JPEG and decoded", log_scale=True, is_integer=True
    ),
}
# All modalities at once, by the first of these that is asked for.
COMBINED_KINDS: dict[str, tuple[str, ...]] = {
    "eeg": ("eeg.pink", "eeg.gaussian", "eeg.muscle"),
    "audio": ("audio.babble", "audio.gaussian"),
    "video": ("video.blur", "video.occlusion", "video.darkness"),
}


@dataclass(frozen=True)
class Corruption:
    """One kind at one level."""

    kind: str  # of CORRUPTION_KINDS
    level: float
    seed: int

    @property
    def modality(self) -> ModalityName:
        return CORRUPTION_KINDS[self.kind].modality

    @property
    def name(self) -> str:
        """Without the modality."""
        return self.kind.partition(".")[2]

    @property
    def is_identity(self) -> bool:
        return self.level == CORRUPTION_KINDS[self.kind].identity_level

    def make_rng(self, recording: str) -> np.random.Generator:
        """
        Args:
            recording: Its id, `subject/recording`.
        """
        words = hashlib.sha256(f"{recording}\n{self.kind}".encode()).digest()
        return np.random.default_rng([self.seed, *np.frombuffer(words[:16], np.uint32).tolist()])


def compute_levels(kind: str, steps: int) -> tuple[float, ...]:
    """Evenly from the mildest to the strongest; one step is the strongest."""
    spec = CORRUPTION_KINDS[kind]
    space = np.geomspace if spec.log_scale else np.linspace
    values = space(spec.mildest, spec.strongest, steps) if steps > 1 else np.array([spec.strongest])
    return tuple(float(round(level)) if spec.is_integer else float(f"{level:.3g}") for level in values)


def select_kinds(names: Sequence[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """The kinds that words name, of these modalities, in the order of KINDS: `eeg.pink`, or `gaussian` for each.

    Raises:
        ConfigError: There is no such kind, or not of these modalities.
    """
    available = [name for name, kind in CORRUPTION_KINDS.items() if kind.modality in modalities]
    if not names:
        return tuple(available)
    selected: set[str] = set()
    for requested in names:
        matching = {name for name in available if requested in (name, name.partition(".")[2])}
        if not matching:
            raise ConfigError(
                f"--corruptions names {requested!r}, which is no corruption of {', '.join(modalities)}; allowed are "
                f"{', '.join(available)}{suggest_nearest(requested, available)}"
            )
        selected |= matching
    return tuple(name for name in available if name in selected)


def scale_to_snr(noise: np.ndarray, power: np.ndarray | float, snr_db: float) -> np.ndarray:
    """Noise, without its mean, scaled so that `power` over its own power is the ratio asked for: along the last axis.

    Args:
        power: Of the signal; a signal without power gets no noise.
    """
    noise = noise - noise.mean(axis=-1, keepdims=True)
    noise_power = np.square(noise).mean(axis=-1)
    wanted = noise_power * 10 ** (snr_db / 10)
    gain = np.sqrt(np.divide(power, wanted, out=np.zeros_like(noise_power), where=noise_power > 0))
    return noise * gain[..., None]


def draw_lost_blocks(rng: np.random.Generator, n_blocks: int, share: float) -> np.ndarray:
    """Which blocks of time are lost: (blocks,) bool. A larger share loses these too, and others.

    Of each ten an exact share where that is a whole number of blocks; else one block more or less, drawn at random, so
    that the share is exact in the mean.
    """
    n_groups = -(-n_blocks // BLOCKS_PER_GROUP)
    ranks = rng.permuted(np.tile(np.arange(BLOCKS_PER_GROUP), (n_groups, 1)), axis=1)
    ranks = ranks + rng.uniform(size=(n_groups, 1))
    return ranks.ravel()[:n_blocks] < round(share * BLOCKS_PER_GROUP, 6)
