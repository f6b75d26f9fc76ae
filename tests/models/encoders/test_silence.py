"""What is sound in a window, and that silence and padding reach no statistic and no token of an audio encoder."""

from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eav_ray.config import DataConfig, Experiment, override
from eav_ray.data.datasets import registry
from eav_ray.data.io.audio import read_audio
from eav_ray.models.encoders.ast import AST, AUDIOSET_SD
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.models.encoders.mfcc import MFCC
from eav_ray.models.encoders.silence import find_sound
from tests.helpers.ast_features import LibraryExtractor

HZ, WINDOW_S = 16000, 5
SILENCE_DB = 30.0
# Said by the library's own extractor: 257 bins leave the lowest of 128 triangles empty, as in Kaldi.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def clips(real: Path) -> list[np.ndarray]:
    """RAVDESS clips of 16 actors, up to the last sample that is not zero."""
    _, listing = registry.scan_dataset(DataConfig(dataset="ravdess", root=str(real), modalities=("audio",)))
    paths = [r.audio for r in listing.recordings[::12]]
    found = [np.trim_zeros(read_audio(path, HZ), "b") for path in paths if path is not None]
    assert len(found) == 48 and all(2 * HZ < len(clip) < WINDOW_S * HZ for clip in found)
    return found


MFCC_SIZES: dict[str, Any] = dict(coefficients=8, log_mel=False, width=16, dropout=0.5, input_dropout=0.0)


def make_mfcc(*, segments: int = 10, silence_db: float = SILENCE_DB, **changes: Any) -> MFCC:
    sizes = MFCC_SIZES | changes
    return MFCC(window_s=WINDOW_S, segments=segments, silence_db=silence_db, **sizes).eval()


def make_ast(**changes: Any) -> AST:
    sizes: dict[str, Any] = dict(
        width=24, depth=1, heads=2, max_length=512, stride=16, dropout=0.0, silence_db=SILENCE_DB
    )
    return AST(window_s=WINDOW_S, **(sizes | changes)).eval()


ENCODERS = {"mfcc": make_mfcc, "ast": make_ast}


def fill_windows(*clips: np.ndarray) -> Tensor:
    """(clips, samples) of windows, filled up with zeros."""
    rows = [np.pad(clip[: WINDOW_S * HZ], (0, max(0, WINDOW_S * HZ - len(clip)))) for clip in clips]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def make_noise(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.random.default_rng(0).uniform(-1, 1, int(seconds * HZ))).astype(np.float32)


def make_present(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def test_sound_is_what_librosa_keeps_of_real_clips(clips: list[np.ndarray]) -> None:
    for silence_db in (20.0, SILENCE_DB, 60.0):
        sound = find_sound(fill_windows(*clips), silence_db)
        expected = np.array([librosa.effects.trim(clip, top_db=silence_db)[1] for clip in clips])
        assert sound.begin_B.tolist() == expected[:, 0].tolist()
        assert sound.end_B.tolist() == expected[:, 1].tolist()
        assert sound.n_samples_B.tolist() == [len(clip) for clip in clips]
    kept = (sound := find_sound(fill_windows(*clips), SILENCE_DB)).end_B - sound.begin_B
    assert kept.sum() < 0.6 * sum(map(len, clips))  # nearly half of these clips is a quiet room


@given(
    length=st.integers(1, 9000),
    begin=st.integers(0, 8999),
    size=st.integers(1, 9000),
    room_db=st.sampled_from([-1000, -70, -40, -20]),
    silence_db=st.sampled_from([0.5, 12.0, 30.0]),
)
def test_sound_is_what_librosa_keeps_of_any_clip(
    length: int, begin: int, size: int, room_db: int, silence_db: float
) -> None:
    rng = np.random.default_rng(length + begin)
    clip = 10 ** (room_db / 20) * rng.uniform(-1, 1, length)
    clip[begin : begin + size] += rng.uniform(-1, 1, len(clip[begin : begin + size]))
    clip = clip.astype(np.float32)
    clip[-1] = clip[-1] or 1e-6  # otherwise it would be a shorter clip
    window = torch.from_numpy(np.pad(clip, (0, 9000 - length)))[None]
    sound = find_sound(window, silence_db)
    expected = librosa.effects.trim(clip, top_db=silence_db)[1]
    assert [int(sound.begin_B), int(sound.end_B)] == expected.tolist()
    assert 0 <= int(sound.begin_B) < int(sound.end_B) <= int(sound.n_samples_B) == length


def test_without_a_threshold_only_the_zeros_at_a_windows_end_are_silence() -> None:
    quiet = 1e-3 * make_noise(1)
    x = fill_windows(
        np.concatenate([quiet, make_noise(1), quiet]), np.concatenate([np.zeros(HZ), make_noise(1)]), np.zeros(1)
    )
    sound = find_sound(x, 0)
    assert sound.begin_B.tolist() == [0, 0, 0]
    assert sound.end_B.tolist() == sound.n_samples_B.tolist() == [3 * HZ, 2 * HZ, WINDOW_S * HZ]


def test_a_pause_inside_counts_and_silent_ends_do_not() -> None:
    room = make_noise(1, 1e-3)
    sound = find_sound(fill_windows(np.concatenate([room, make_noise(1), room, make_noise(1), room])), SILENCE_DB)
    assert int(sound.begin_B) == pytest.approx(HZ, abs=1024) and int(sound.end_B) == pytest.approx(4 * HZ, abs=1024)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_window_of_digital_silence_counts_throughout(kind: str) -> None:
    encoder = ENCODERS[kind]()
    features, mask = encoder.compute_features(torch.zeros(1, WINDOW_S * HZ))
    assert mask.sum() == (10 if kind == "mfcc" else 498)
    encoded = encoder(torch.zeros(1, WINDOW_S * HZ), make_present(1))
    assert features.isfinite().all() and encoded.mask_BN.all() and encoded.pooled_BD.isfinite().all()


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("n_samples", [1, 399, 401, 1100])
def test_the_shortest_clip_keeps_a_token(kind: str, n_samples: int) -> None:
    for silence_db in (0, SILENCE_DB):
        encoder = ENCODERS[kind](silence_db=silence_db)
        clip = 1e-3 * make_noise(n_samples / HZ + 1)[:n_samples]
        clip[-1] = 1
        encoded = encoder(fill_windows(clip), make_present(1))
        assert encoded.mask_BN.sum() == 1 and encoded.pooled_BD.isfinite().all()


@pytest.mark.parametrize("kind", ENCODERS)
def test_tokens_of_silent_ends_and_padding_are_masked(kind: str) -> None:
    room = make_noise(1.1, 1e-3)
    x = fill_windows(np.concatenate([room, make_noise(0.8), room]))
    encoder = ENCODERS[kind]()
    mask = encoder(x, make_present(1)).mask_BN[0]
    times_s = encoder.times_s[mask]
    assert not mask.all() and times_s.min() > 0.9 and times_s.max() < 2.1  # the rule's own frames reach 64 ms further
    assert mask[(encoder.times_s > 1.1) & (encoder.times_s < 1.9)].all()
    padding_alone = ENCODERS[kind](silence_db=0)(x, make_present(1)).mask_BN[0]
    half_token_s = WINDOW_S / len(mask) / 2
    assert padding_alone.tolist() == (encoder.times_s - half_token_s < 2.99).tolist()


def test_ast_calls_22_of_32_tokens_of_a_clip_of_three_and_a_half_seconds_sound() -> None:
    """Two seconds are 198 frames of 10 ms, three and a half 348; a token is 16."""
    mask = make_ast()(fill_windows(make_noise(3.5), make_noise(2)), make_present(2)).mask_BN
    assert mask.tolist() == [[16 * t < frames for t in range(32)] for frames in (348, 198)]
    assert mask.sum(1).tolist() == [22, 13]


@pytest.mark.parametrize("seconds", [1.0, 2.3, 3.5, 5.0])
@pytest.mark.parametrize("max_length", [512, 1024])
def test_ast_gets_what_the_librarys_extractor_makes_of_the_clip_alone(
    clips: list[np.ndarray], seconds: float, max_length: int
) -> None:
    """Within the tolerances of the filter bank, in log-mel units; silent ends of the recording included."""
    # A clip of five seconds is two after each other.
    cut = [np.trim_zeros(np.tile(c, 2)[: int(seconds * HZ)], "b") for c in clips[::4]]
    cut.append(make_noise(seconds))
    library = LibraryExtractor(max_length)
    expected = library(cut, HZ)
    found, mask = make_ast(max_length=max_length).compute_features(fill_windows(*cut))
    difference = np.abs(found.numpy() - expected) * 2 * AUDIOSET_SD
    assert difference.max() < 1e-3
    assert difference.mean() < 2e-5
    frames = [(len(c) - 400) // 160 + 1 for c in cut]
    assert mask.shape == found.shape[:2] and mask[-1].sum() == frames[-1]
    for row, n in zip(mask, frames, strict=True):
        assert row.sum() > 0 and not row[n:].any()


def test_frames_of_ast_that_touch_sound_count_on_real_clips(clips: list[np.ndarray]) -> None:
    _, mask = make_ast().compute_features(fill_windows(*clips))
    for row, clip in zip(mask, clips, strict=True):
        begin, end = librosa.effects.trim(clip, top_db=SILENCE_DB)[1]
        whole = range((len(clip) - 400) // 160 + 1)
        assert row.nonzero().flatten().tolist() == [k for k in whole if 160 * k < end and 160 * k + 400 > begin]


def compute_librosa_cepstra(clip: np.ndarray) -> np.ndarray:
    """(8, frames) of frames whose centre lies in the clip."""
    mel = librosa.feature.melspectrogram(y=clip, sr=HZ, n_fft=512, hop_length=160, n_mels=64)
    cepstra = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), sr=HZ, n_mfcc=8)
    return cepstra[:, : -(-len(clip) // 160)]


def compute_statistics(cepstra: np.ndarray) -> np.ndarray:
    differences = [librosa.feature.delta(cepstra, width=9, order=k, mode="nearest") for k in (1, 2)]
    whole = np.concatenate([cepstra, *differences])
    return np.concatenate([whole.mean(1), whole.std(1)])


@pytest.mark.parametrize("silence_db", [0, SILENCE_DB])
def test_statistics_of_mfcc_are_librosas_over_what_is_sound(clips: list[np.ndarray], silence_db: float) -> None:
    found, _ = make_mfcc(segments=1, silence_db=silence_db).compute_features(fill_windows(*clips))
    for row, clip in zip(found, clips, strict=True):
        cepstra = compute_librosa_cepstra(clip)
        if silence_db:
            begin, end = librosa.effects.trim(clip, top_db=silence_db)[1]
            cepstra = cepstra[:, begin // 160 : -(-end // 160)]
        np.testing.assert_allclose(row[0], compute_statistics(cepstra), rtol=1e-4, atol=2e-3)


def test_statistics_of_log_mel_bands_are_those_of_what_is_sound(clips: list[np.ndarray]) -> None:
    found, _ = make_mfcc(segments=1, log_mel=True).compute_features(fill_windows(*clips))
    cepstra_alone, _ = make_mfcc(segments=1).compute_features(fill_windows(*clips))
    assert torch.equal(found[..., :48], cepstra_alone)
    for row, clip in zip(found, clips, strict=True):
        begin, end = librosa.effects.trim(clip, top_db=SILENCE_DB)[1]
        mel = librosa.feature.melspectrogram(y=clip, sr=HZ, n_fft=512, hop_length=160, n_mels=64)
        bands = pd.DataFrame(librosa.power_to_db(mel, top_db=None)[:, begin // 160 : -(-end // 160)].T)
        expected = [bands.mean(), bands.std(ddof=0), *(bands.quantile(q) for q in (0.1, 0.5, 0.9))]
        np.testing.assert_allclose(row[0, 48:], np.concatenate(expected), rtol=1e-4, atol=2e-3)


def test_a_segment_that_is_partly_silent_has_the_statistics_of_its_sound(clips: list[np.ndarray]) -> None:
    """Each half-second on the window's clock, by the frames in it that are sound."""
    found, mask = make_mfcc().compute_features(fill_windows(*clips))
    partly = 0
    for features, counts, clip in zip(found, mask, clips, strict=True):
        begin, end = librosa.effects.trim(clip, top_db=SILENCE_DB)[1]
        kept = np.arange(begin // 160, -(-end // 160))
        cepstra = compute_librosa_cepstra(clip)[:, kept]
        assert counts.nonzero().flatten().tolist() == sorted(set((kept // 50).tolist()))
        for segment in range(10):
            part = cepstra[:, kept // 50 == segment]
            partly += 0 < part.shape[1] < 50
            if part.shape[1]:
                np.testing.assert_allclose(features[segment, :8], part.mean(1), rtol=1e-4, atol=2e-3)
                np.testing.assert_allclose(features[segment, 24:32], part.std(1), rtol=1e-4, atol=2e-3)
            else:
                assert (features[segment] == 0).all()
    assert partly > len(clips)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_clip_has_the_same_sound_in_a_longer_window(kind: str, clips: list[np.ndarray]) -> None:
    """Padding changes nothing that counts: no statistic, no difference, no frame."""
    clip = np.trim_zeros(clips[0][: 2 * HZ + 77], "b")
    longer = ENCODERS[kind]()
    features, mask = longer.compute_features(fill_windows(clip))
    shorter = {
        "mfcc": lambda: MFCC(window_s=2.5, segments=5, silence_db=SILENCE_DB, **MFCC_SIZES),
        "ast": lambda: make_ast(max_length=256),
    }[kind]()
    other_features, other_mask = shorter.compute_features(fill_windows(clip)[:, : int(2.5 * HZ)])
    n = other_mask.shape[1]
    assert torch.equal(mask[:, :n], other_mask) and not mask[:, n:].any()
    torch.testing.assert_close(features[:, :n], other_features, rtol=1e-5, atol=1e-3)


def test_statistics_of_training_rows_are_of_sounding_segments_alone() -> None:
    room = make_noise(1, 1e-3)
    x = fill_windows(np.concatenate([room, make_noise(1), room]), make_noise(2), make_noise(5))
    encoder = make_mfcc()
    features, mask = encoder.compute_features(x)
    encoder.fit_statistics([(x[:1], None), (x[1:], None)])
    rows = features[mask]
    assert 3 <= mask.sum(1)[0] <= 4 and len(rows) < 20
    torch.testing.assert_close(encoder.standardise.mean, rows.mean(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(encoder.standardise.sd, rows.std(0, unbiased=False), rtol=1e-3, atol=1e-3)


def test_pooled_features_of_mfcc_are_the_mean_of_sounding_tokens() -> None:
    encoded = make_mfcc()(fill_windows(make_noise(2), make_noise(5)), make_present(2))
    for tokens, mask, pooled in zip(*encoded, strict=True):
        torch.testing.assert_close(pooled, tokens[mask].mean(0))
    assert encoded.mask_BN.sum(1).tolist() == [4, 10]


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_key_reaches_the_encoder(kind: str) -> None:
    changes = {"data.modalities": ["audio"], "model.audio.kind": kind, "model.audio.silence_db": 0}
    sizes = {"model.audio.width": 24} | ({"model.audio.depth": 1, "model.audio.heads": 2} if kind == "ast" else {})
    x = fill_windows(np.concatenate([make_noise(1), make_noise(4, 1e-3)]))
    masks = []
    for silence_db in (0, 30):
        e = override(Experiment(), changes | sizes | {"model.audio.silence_db": silence_db})
        encoder = build_encoder(e, "audio", DataShapes(30, 5)).eval()
        masks.append(encoder(x, make_present(1)).mask_BN[0])
    assert masks[0].all() and not masks[1].all()
