"""Spectra of the segments of EEG windows in the bands of the field: what band powers and covariances are made of."""

import numpy as np
import torch
from torch import Tensor, nn

from eav_ray.errors import ConfigError

BANDS_HZ = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}
VARIANCE_FLOOR = 1e-6  # of a standardised channel's variance: a flat channel has no logarithm


class BandSpectra(nn.Module):
    """Cuts windows into contiguous segments, and tells what each band holds of them.

    Args:
        n_times: Samples of a window.
        hz: Their rate.
        segments: Of a window; samples that do not fill the last are left out.
        kind: Of the encoder, as errors name it.
    Raises:
        ConfigError: A segment is too short to tell the bands apart.
    """

    window: Tensor
    bins: Tensor

    def __init__(self, n_times: int, *, hz: float, segments: int, kind: str) -> None:
        super().__init__()
        import scipy.signal  # half a second, in every process that a search or a group starts

        self.segments, self.segment_samples = segments, n_times // segments
        # Above half the rate there is nothing.
        edges = [(low, high) for low, high in BANDS_HZ.values() if high <= hz / 2]
        frequency = np.fft.rfftfreq(max(1, self.segment_samples), 1 / hz)
        bins = [(frequency >= low) & (frequency < high) for low, high in edges]
        if not bins or not all(b.any() for b in bins):
            raise ConfigError(
                f"an EEG segment of {self.segment_samples} samples at {hz:g} Hz cannot tell the bands of "
                f"model.eeg.kind={kind} apart; lower model.eeg.segments, or raise preprocessing.window_s or "
                "preprocessing.eeg.hz"
            )
        window = scipy.signal.get_window("hann", self.segment_samples)
        # A sum of these weights times the squared spectrum is the variance that the band holds.
        weights = 2 * np.array(bins) / (self.segment_samples * np.square(window).sum())
        self.register_buffer("window", torch.tensor(window, dtype=torch.float32), persistent=False)
        self.register_buffer("bins", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.n_bands = len(edges)

    def _compute_spectra(self, x_BST: Tensor) -> Tensor:
        """(batch, electrodes, segments, frequencies), complex."""
        b, s, _ = x_BST.shape
        segmented = x_BST.float()[..., : self.segments * self.segment_samples].reshape(
            b, s, self.segments, self.segment_samples
        )
        return torch.fft.rfft((segmented - segmented.mean(-1, keepdim=True)) * self.window)

    def compute_power(self, x_BST: Tensor) -> Tensor:
        """Compute the variance that each band holds: (batch, electrodes, segments, bands).

        Args:
            x_BST: (batch, electrodes, samples).
        """
        spectra = self._compute_spectra(x_BST)
        # In double precision, which autocast leaves alone.
        return ((spectra.real.square() + spectra.imag.square()).double() @ self.bins.double().T).float()

    def compute_covariances(self, x_BST: Tensor) -> Tensor:
        """Compute covariances of electrodes in each band: (batch, segments, bands, electrodes, electrodes), float64.

        Args:
            x_BST: (batch, electrodes, samples).
        """
        spectra_BNSF = self._compute_spectra(x_BST).transpose(1, 2)
        parts = []
        for weight_F in self.bins.double():
            # Only the band's own bins: the others weigh nothing.
            of_band_BNSF = spectra_BNSF[..., weight_F > 0]
            both = torch.cat([of_band_BNSF.real, of_band_BNSF.imag], -1).double()
            parts.append(weight_F.max() * (both @ both.transpose(-1, -2)))
        return torch.stack(parts, 2)
