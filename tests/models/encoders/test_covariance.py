"""The encoder of covariances against scipy's exponential of matrices, and what masked electrodes and gains do to it."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import torch

from eav_ray.config import load_experiment
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.band_spectra import BANDS_HZ
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.covariance import Covariance
from eav_ray.training.subject_statistics import sum_features

N_CHANNELS, HZ, WINDOW_S, SHRINKAGE = 4, 100, 5, 0.1
PAIRS = N_CHANNELS * (N_CHANNELS + 1) // 2


def make_encoder(n_channels: int = N_CHANNELS, segments: int = 2) -> Covariance:
    sizes: dict[str, Any] = dict(width=8, dropout=0.0, input_dropout=0.0, shrinkage=SHRINKAGE)
    return Covariance(n_channels, HZ * WINDOW_S, hz=HZ, window_s=WINDOW_S, segments=segments, **sizes).eval()


def make_eeg(n: int, seed: int = 0) -> torch.Tensor:
    """Correlated noise of tens of microvolts."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(N_CHANNELS, N_CHANNELS, generator=generator)
    return 20 * mixing @ torch.randn(n, N_CHANNELS, HZ * WINDOW_S, generator=generator)


def test_the_exponential_of_features_is_what_each_band_holds() -> None:
    x = make_eeg(3)
    found, known = make_encoder().compute_features(x)
    assert found.shape == (3, 2, len(BANDS_HZ) * PAIRS) and known.all()
    taper = scipy.signal.get_window("hann", 250)
    rows, columns = np.triu_indices(N_CHANNELS)
    for window, features in zip(x.double().numpy(), found.numpy(), strict=True):
        for segment in range(2):
            part = window[:, 250 * segment : 250 * (segment + 1)]
            spectrum = np.fft.rfft((part - part.mean(1, keepdims=True)) * taper)
            for band, (low, high) in enumerate(BANDS_HZ.values()):
                frequency = np.fft.rfftfreq(250, 1 / HZ)
                passed = np.fft.irfft(np.where((frequency >= low) & (frequency < high), spectrum, 0), n=250)
                covariance = passed @ passed.T / np.square(taper).sum()
                covariance += np.eye(N_CHANNELS) * (SHRINKAGE * np.trace(covariance) / N_CHANNELS + 1e-6)
                logarithm = np.zeros((N_CHANNELS, N_CHANNELS))
                logarithm[rows, columns] = features[segment, PAIRS * band : PAIRS * (band + 1)]
                logarithm[columns, rows] = logarithm[rows, columns]
                np.testing.assert_allclose(scipy.linalg.expm(logarithm), covariance, rtol=1e-4, atol=1e-4)


def test_a_masked_electrode_changes_nothing_of_the_others_and_counts_as_the_mean() -> None:
    x, encoder = make_eeg(8), make_encoder()
    encoder.fit_statistics([(x, None)])
    masked = x[:1].clone()
    masked[:, 2] = 0
    features, known = encoder.compute_features(masked)
    others, _ = make_encoder(N_CHANNELS - 1).compute_features(masked[:, [0, 1, 3]])
    assert known.sum() == others.numel()
    torch.testing.assert_close(features[known], others.flatten(), rtol=1e-4, atol=1e-4)
    assert (features[~known] == 0).all()
    # The network sees the mean of the training rows where nothing is known: other means would move nothing.
    present = torch.tensor([True])
    before = encoder(masked, present).pooled_BD
    unknown = ~known[0, 0]
    encoder.standardise.mean[unknown] += 100
    torch.testing.assert_close(encoder(masked, present).pooled_BD, before)
    encoder.standardise.mean[~unknown] += 100
    assert not torch.allclose(encoder(masked, present).pooled_BD, before, atol=1e-3)


@pytest.mark.parametrize("flat", ["all electrodes zero", "all electrodes alike", "one electrode constant"])
def test_what_has_no_logarithm_is_finite_all_the_same(flat: str) -> None:
    x = make_eeg(1)
    if flat == "all electrodes zero":
        x = torch.zeros_like(x)
    elif flat == "all electrodes alike":
        x = x[:, :1].expand(x.shape).clone()
    else:
        x[:, 1] = 7.0
    features, _ = make_encoder().compute_features(x)
    assert features.isfinite().all()
    out = make_encoder()(x, torch.tensor([True]))
    assert out.tokens_BND.isfinite().all() and out.mask_BN.all()


def test_the_gain_of_a_subjects_amplifier_changes_nothing_where_features_are_normalised() -> None:
    torch.manual_seed(0)
    changes = {"data.modalities": ["eeg"], "split.access": "unlabelled_block"}
    changes |= {"model.eeg": {"kind": "covariance", "subject_normalisation": "standardise"}}
    model = Classifier(load_experiment("fusion", changes), DataShapes(N_CHANNELS, 2)).eval()
    encoder: Any = model.encoders["eeg"]

    def run(x: torch.Tensor) -> torch.Tensor:
        mean, sd = sum_features(encoder, x).compute_moments()
        inputs = {"eeg.subject_mean": mean, "eeg.subject_sd": sd}
        expanded = {name: torch.from_numpy(v).float().expand(len(x), -1) for name, v in inputs.items()}
        return model({"eeg": x} | expanded, torch.ones(len(x), 1, dtype=torch.bool)).logits_BK

    x = make_eeg(6)
    with torch.no_grad():
        torch.testing.assert_close(run(3 * x), run(x), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(run(x.flip(0)), run(x), atol=1e-3)


def test_input_dropout_hides_features_in_training_alone() -> None:
    sizes: dict[str, Any] = dict(width=8, dropout=0.0, segments=1, shrinkage=SHRINKAGE)
    encoder = Covariance(N_CHANNELS, HZ * WINDOW_S, hz=HZ, window_s=WINDOW_S, input_dropout=0.5, **sizes)
    x, present = make_eeg(4), torch.ones(4, dtype=torch.bool)
    encoder.fit_statistics([(x, None)])
    assert not torch.equal(encoder(x, present).pooled_BD, encoder(x, present).pooled_BD)
    encoder.eval()
    assert torch.equal(encoder(x, present).pooled_BD, encoder(x, present).pooled_BD)
