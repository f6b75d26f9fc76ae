"""Find the sound in windows of audio: one rule for every audio encoder, in its statistics and in its tokens."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

FRAME_SAMPLES, HOP_SAMPLES = 2048, 512  # of librosa.effects.trim
POWER_FLOOR = 1e-10  # below which librosa calls all frames equally loud


class SoundBounds(NamedTuple):
    """Where windows have sound, in samples: (batch,) int64 each."""

    begin_B: Tensor  # the first sample of the sound
    end_B: Tensor  # one past its last
    n_samples_B: Tensor  # of the recording; what follows is padding


def find_sound(x_BT: Tensor, silence_db: float) -> SoundBounds:
    """Find the sound of each window: what `librosa.effects.trim(window, top_db=silence_db)` keeps.

    Everything between the first and the last frame (2048 samples every 512) whose RMS lies within `silence_db` of the
    window's loudest is sound, pauses in between too. Digital zeros at a window's end are padding and never sound: the
    bounds are those of the recording alone. A recording that itself ends in digital zeros is taken for a shorter one.
    A window of nothing but zeros is sound throughout, as for librosa: something must be left to attend to.

    Args:
        x_BT: Waveforms, (batch, samples).
        silence_db: How far below the loudest frame silence begins; 0: only padding is silence.
    """
    n_samples_B = _count_recorded_samples(x_BT)
    if not silence_db:
        return SoundBounds(torch.zeros_like(n_samples_B), n_samples_B, n_samples_B)
    half = FRAME_SAMPLES // 2
    squares = nn.functional.pad(x_BT.square()[:, None], (half, half))
    power_BF = nn.functional.avg_pool1d(squares, FRAME_SAMPLES, HOP_SAMPLES)[:, 0].clamp(min=POWER_FLOOR)
    is_loud_BF = power_BF > power_BF.amax(1, keepdim=True) * 10 ** (-silence_db / 10)
    n_frames = power_BF.shape[1]
    index_F = torch.arange(n_frames, device=x_BT.device)
    first_B = torch.where(is_loud_BF, index_F, n_frames).amin(1)
    last_B = torch.where(is_loud_BF, index_F, -1).amax(1)
    end_B = torch.minimum((last_B + 1) * HOP_SAMPLES, n_samples_B)
    return SoundBounds(first_B * HOP_SAMPLES, end_B, n_samples_B)


def _count_recorded_samples(x_BT: Tensor) -> Tensor:
    """(batch,) samples up to the last that is not zero; all of them where there is none."""
    n_samples = x_BT.shape[1]
    position_T = torch.arange(1, n_samples + 1, device=x_BT.device)
    last_B = torch.where(x_BT != 0, position_T, 0).amax(1)
    return torch.where(last_B > 0, last_B, n_samples)
