"""A distortion is as strong as its level says, the same every time, and nobody's business but the recording's own."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import welch

from eav_ray.data.corruptions.audio import AudioCorruption, shuffle_talkers
from eav_ray.data.corruptions.base import CORRUPTION_KINDS, Corruption, compute_levels, draw_lost_blocks, select_kinds
from eav_ray.data.corruptions.eeg import compute_blink_gains, compute_power, corrupt_dataset, corrupt_eeg
from eav_ray.data.corruptions.video import VideoCorruption
from eav_ray.data.io import audio, video
from eav_ray.data.recordings import DatasetReader, Listing, RawEEG, Recording
from eav_ray.errors import ConfigError, DataError

HZ, SECONDS = 500, 4
CHANNELS = ("Fp1", "Fp2", "F3", "Fz", "C3", "Cz", "P3", "Pz", "O1", "O2")
SNR = [name for name, kind in CORRUPTION_KINDS.items() if kind.unit == "dB SNR"]
OF = {m: [name for name, kind in CORRUPTION_KINDS.items() if kind.modality == m] for m in ("eeg", "audio", "video")}
ME = Recording("me", "007", 0, "speaking", 0)


def scalp(unit: str = "microvolt", scale: float = 1.0) -> RawEEG:
    """10 uV of everything, on the offset and drift that electrodes have."""
    rng = np.random.default_rng(1)
    t = np.arange(HZ * SECONDS) / HZ
    x_CT = 10 * rng.standard_normal((len(CHANNELS), len(t))) + 20 * np.sin(2 * np.pi * 10 * t)
    x_CT += 3000 * rng.standard_normal((len(CHANNELS), 1)) + 40 * t
    return RawEEG(x_CT * scale, HZ, CHANNELS, unit)


def speech(seed: int = 2, peak: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(16000 * 4) * (1 + np.sin(np.arange(16000 * 4) / 3000))
    return (peak * x / np.abs(x).max()).astype(np.float32)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    """(person, path): three recordings of mine, a tone of 440 Hz, and two each of three others, tones of their own."""
    folder = tmp_path_factory.mktemp("speech")
    found = []
    for n, (subject, count) in enumerate({"me": 3, "a": 2, "b": 2, "c": 2}.items()):
        for k in range(count):
            tone = 0.3 * np.sin(2 * np.pi * 440 * (n + 1) * np.arange(16000) / 16000)
            soundfile.write(folder / f"{subject}{k}.wav", tone, 16000)
            found.append((subject, str(folder / f"{subject}{k}.wav")))
    return tuple(found)


def heard(kind: str, level: float, room: tuple[tuple[str, str], ...], x: np.ndarray, of: Recording = ME) -> np.ndarray:
    return AudioCorruption(Corruption(kind, level, 0), of, room)(x, 16000)


@pytest.mark.parametrize("kind", [k for k in SNR if k.startswith("eeg.")])
@pytest.mark.parametrize("snr_db", [20.0, 0.0, -10.0])
def test_eeg_has_the_ratio_of_signal_to_noise_that_was_asked_for(kind: str, snr_db: float) -> None:
    """In each channel, whatever its offset and drift."""
    raw = scalp()
    noise_CT = corrupt_eeg(raw, Corruption(kind, snr_db, 0), "p/1").values_CT - raw.values_CT
    # By Welch's method, which shares nothing with how the noise was scaled.
    f, psd_CF = welch(raw.values_CT, HZ, nperseg=HZ * 2, detrend="linear")
    signal_C = psd_CF[:, f >= 0.5].sum(axis=1) * (f[1] - f[0])
    np.testing.assert_allclose(10 * np.log10(signal_C / noise_CT.var(axis=1)), snr_db, atol=0.3)


def test_the_power_of_eeg_is_its_variance_without_offset_and_drift() -> None:
    level_CT = scalp().values_CT - scalp().values_CT.mean(axis=1, keepdims=True)
    t = np.arange(level_CT.shape[1])
    level_CT = np.stack([x - np.polyval(np.polyfit(t, x, 1), t) for x in level_CT])
    np.testing.assert_allclose(compute_power(scalp().values_CT, HZ), level_CT.var(axis=1), rtol=0.01)


@pytest.mark.parametrize("kind", ["audio.gaussian", "audio.babble"])
@pytest.mark.parametrize("peak", [0.05, 0.9])
def test_audio_has_the_ratio_of_signal_to_noise_that_was_asked_for(
    kind: str, peak: float, room: tuple[tuple[str, str], ...]
) -> None:
    """Loud speech too: where the sum would be beyond full scale, both are turned down."""
    x = speech(peak=peak)
    for snr_db in (10.0, -10.0):
        y = heard(kind, snr_db, room, x)
        assert np.abs(y).max() <= 1
        gain = min(1.0, 1 / np.abs(y).max()) if peak < 0.5 else float(np.dot(y, x) / np.dot(x, x))
        noise = y - gain * x
        assert 10 * np.log10(np.square(gain * x).mean() / np.square(noise).mean()) == pytest.approx(snr_db, abs=0.4)


@pytest.mark.parametrize("kind", [*OF["eeg"], *OF["audio"]])
def test_a_distortion_is_drawn_from_its_recording_seed_and_kind(kind: str, room: tuple[tuple[str, str], ...]) -> None:
    level = compute_levels(kind, 3)[1]

    def made(seed: int = 0, recording: str = "me/007") -> np.ndarray:
        d, of = Corruption(kind, level, seed), replace(ME, recording=recording.partition("/")[2])
        if d.modality == "eeg":
            return corrupt_eeg(scalp(), d, recording).values_CT
        return AudioCorruption(d, of, room)(speech(), 16000)

    once = made()
    np.testing.assert_array_equal(once, made())
    before = scalp().values_CT if kind.startswith("eeg.") else speech()
    assert once.shape == before.shape and once.dtype == before.dtype and (once != before).any()
    if kind not in ("audio.clipping", "audio.band"):  # which draw nothing
        assert (once != made(seed=1)).any() and (once != made(recording="me/008")).any()


@pytest.mark.parametrize("kind", CORRUPTION_KINDS)
def test_the_harmless_level_changes_nothing(kind: str, room: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    d = Corruption(kind, CORRUPTION_KINDS[kind].identity_level, 0)
    match d.modality:
        case "eeg":
            np.testing.assert_array_equal(corrupt_eeg(scalp(), d, "p/1").values_CT, scalp().values_CT)
        case "audio":
            np.testing.assert_array_equal(AudioCorruption(d, ME, room)(speech(), 16000), speech())
        case "video":
            path = film(tmp_path / "a.mp4", seconds=2)
            as_is = video.read_video(path, 5, 32).frames
            np.testing.assert_array_equal(
                video.read_video(path, 5, 32, corruption=VideoCorruption(d, "p/1")).frames, as_is
            )


@pytest.mark.parametrize("kind", CORRUPTION_KINDS)
def test_steps_grow_away_from_harmless(kind: str) -> None:
    k, three = CORRUPTION_KINDS[kind], compute_levels(kind, 3)
    assert three[0] == k.mildest and three[-1] == k.strongest == compute_levels(kind, 1)[0]
    assert sorted(three, reverse=k.identity_level == float("inf")) == list(three)


@pytest.mark.parametrize(("unit", "scale"), [("microvolt", 1.0), ("volt", 1e-6), ("auto", 1.0), ("auto", 1e-6)])
@pytest.mark.parametrize(("kind", "level"), [("eeg.blinks", 300.0), ("eeg.drift", 5000.0)])
def test_levels_in_microvolts_are_microvolts_in_any_unit(kind: str, level: float, unit: str, scale: float) -> None:
    raw = scalp(unit, scale)
    found = corrupt_eeg(raw, Corruption(kind, level, 0), "p/1")
    added_uv = (found.values_CT - raw.values_CT) / scale
    at_fp1 = np.abs(added_uv[0]).max()
    assert at_fp1 == pytest.approx(level, rel=1e-3)
    # Nothing later has to guess from a signal that is no longer what it was.
    assert found.unit == ("volt" if scale == 1e-6 else "microvolt")


def test_blinks_are_strongest_in_front() -> None:
    assert compute_blink_gains(["EEG Fp1-REF", "AF3", "Fz", "FC1", "Cz", "O1"]).tolist() == [
        1,
        0.7,
        0.4,
        0.15,
        0.05,
        0.02,
    ]
    assert compute_blink_gains(["E1", "E2"]).tolist() == [0.2, 0.2]


def test_electrodes_come_off_one_after_the_other() -> None:
    before: set[int] = set()
    for share in (0.1, 0.4, 0.7):
        x_CT = corrupt_eeg(scalp(), Corruption("eeg.dropout", share, 0), "p/1").values_CT
        flat = set(np.flatnonzero(np.ptp(x_CT, axis=1) == 0).tolist())
        assert len(flat) == round(share * len(CHANNELS)) and before <= flat
        before = flat


def test_a_channel_that_is_not_finite_stays_so_and_touches_no_other() -> None:
    raw = scalp()
    raw.values_CT[3, 5] = np.nan
    x_CT = corrupt_eeg(raw, Corruption("eeg.pink", 0, 0), "p/1").values_CT
    assert np.isfinite(np.delete(x_CT, 3, axis=0)).all() and np.isnan(x_CT[3, 5])


def test_a_rate_that_cannot_hold_the_noise_is_refused() -> None:
    with pytest.raises(DataError, match="100 Hz, too slow to hold mains hum"):
        corrupt_eeg(replace(scalp(), hz=100.0), Corruption("eeg.mains", 0, 0), "p/1")


class Source(DatasetReader):
    """A data set whose EEG is that of `scalp`."""

    classes, modalities = ("a",), ("eeg",)

    def __init__(self) -> None:
        """It lies nowhere."""

    def scan(self) -> Listing:
        return Listing((ME,))

    def session_recordings(self, recordings: list[Recording]) -> list[Recording]:
        return list(recordings)

    def read_eeg(self, recording: Recording) -> RawEEG:
        return scalp()


def test_a_data_set_reads_its_eeg_disturbed() -> None:
    d = Corruption("eeg.pink", 0.0, 3)
    found = corrupt_dataset(Source(), d, "auto").read_eeg(ME)
    np.testing.assert_array_equal(found.values_CT, corrupt_eeg(scalp(), d, "me/007").values_CT)


def test_babble_is_of_other_people_and_of_several(room: tuple[tuple[str, str], ...]) -> None:
    """Everybody here speaks at a pitch of their own."""
    for recording in ("001", "002", "003"):
        y = heard("audio.babble", -20.0, room, speech(peak=0.001), replace(ME, recording=recording))
        loud = np.abs(np.fft.rfft(y))
        mine, others = (loud[[round(440 * n * len(y) / 16000) for n in subjects]] for subjects in ((1,), (2, 3, 4)))
        assert (others > 20 * mine.max()).all()
    order = shuffle_talkers(np.random.default_rng(0), "me", room)
    assert len(order) == 6 and {Path(p).name[0] for p in order[:3]} == {"a", "b", "c"}
    with pytest.raises(DataError, match="no speech of anybody else"):
        heard("audio.babble", 0.0, room[:3], speech())


def test_babble_does_not_come_from_a_file_that_is_damaged(room: tuple[tuple[str, str], ...], tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    others = (("x", str(tmp_path / "x.wav")), *room)
    assert np.isfinite(heard("audio.babble", 0.0, others, speech())).all()


def test_clipping_cuts_off_at_its_level(room: tuple[tuple[str, str], ...]) -> None:
    x, shares = speech(), []
    for level in (10.0, 20.0, 30.0):
        y = heard("audio.clipping", level, room, x)
        top = np.abs(x).max() * 10 ** (-level / 20)
        assert np.abs(y).max() == pytest.approx(top, rel=1e-5)
        np.testing.assert_array_equal(y[np.abs(x) < top], x[np.abs(x) < top])
        shares.append((np.abs(x) >= top).mean())
    assert shares == sorted(shares) and shares[0] > 0


def test_a_band_limit_leaves_what_is_below_it(room: tuple[tuple[str, str], ...]) -> None:
    x = speech()
    y = heard("audio.band", 2000.0, room, x)
    f, before = welch(x, 16000, nperseg=2048)
    after = welch(y, 16000, nperseg=2048)[1]
    assert after[f > 2600].max() < 1e-4 * before.max()
    np.testing.assert_allclose(after[(f > 50) & (f < 1500)], before[(f > 50) & (f < 1500)], rtol=0.05)


def test_silence_takes_its_share_of_the_time(room: tuple[tuple[str, str], ...]) -> None:
    x = np.tile(speech() + 0.5, 5)  # 20 s, never zero
    for share in (0.2, 0.5, 0.8):
        assert (heard("audio.silence", share, room, x) == 0).mean() == pytest.approx(share, abs=0.01)


def test_more_lapses_are_the_same_ones_and_others() -> None:
    few, many = (draw_lost_blocks(np.random.default_rng(4), 35, share) for share in (0.3, 0.9))
    assert few[:30].sum() == 9 and many[:30].sum() == 27 and (many | ~few).all()


def test_a_share_of_ten_that_is_no_whole_number_is_met_in_the_mean() -> None:
    drawn = [draw_lost_blocks(np.random.default_rng(4), 100_000, share) for share in (0.3, 0.35, 0.45, 0.6)]
    assert [one.mean() for one in drawn] == pytest.approx([0.3, 0.35, 0.45, 0.6], abs=0.003)
    assert all((more | ~less).all() for less, more in pairwise(drawn))
    assert set(drawn[1].reshape(-1, 10).sum(axis=1)) == {3, 4}


def film(path: Path, seconds: float = 10, rate: int = 20) -> Path:
    """A picture of noise on grey whose left edge is as bright as the time, 20 a second."""
    noise = np.random.default_rng(0).integers(60, 200, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for n in range(int(seconds * rate)):
            picture = noise.copy()
            picture[:, :16] = 20 + 20 * n / rate
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def seen(path: Path, kind: str, level: float, recording: str = "p/1") -> np.ndarray:
    return video.read_video(path, 5, 48, corruption=VideoCorruption(Corruption(kind, level, 0), recording)).frames


@pytest.mark.parametrize("kind", OF["video"])
def test_video_is_disturbed_by_recording_and_the_more_the_stronger(kind: str, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    as_is = video.read_video(path, 5, 48).frames.astype(float)
    errors = []
    for level in compute_levels(kind, 3):
        once = seen(path, kind, level)
        np.testing.assert_array_equal(once, seen(path, kind, level))
        assert once.dtype == np.uint8 and once.shape[1:] == as_is.shape[1:] and len(once) <= len(as_is)
        errors.append(float(np.abs(once.astype(float) - as_is[: len(once)]).mean()))
    assert 0 < errors[0] < errors[1] < errors[2]
    if kind in ("video.occlusion", "video.dropped", "video.frozen"):
        others = [seen(path, kind, compute_levels(kind, 3)[1], f"p/{n}")[:30] for n in range(2, 6)]
        assert any((other != seen(path, kind, compute_levels(kind, 3)[1])[:30]).any() for other in others)


def times_s(frames: np.ndarray) -> np.ndarray:
    return (frames[:, :, 2:8].mean(axis=(1, 2, 3)) - 20) / 20


def test_lost_and_frozen_frames_are_bridged_by_the_last(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    at = np.arange(50) / 5
    late_s = times_s(dropped := seen(path, "video.dropped", 0.3)) - at[: len(dropped)]
    assert late_s.max() < 0.3 and late_s.min() < -0.4
    late_s = times_s(frozen := seen(path, "video.frozen", 0.6)) - at
    assert len(frozen) == 50 and late_s.max() < 0.3 and late_s.min() < -1.5


def test_a_square_hides_its_share_of_the_picture() -> None:
    white = np.full((72, 128, 3), 255, np.uint8)
    for share in (0.1, 0.35, 0.6):
        hidden = VideoCorruption(Corruption("video.occlusion", share, 0), "p/1").corrupt_pixels(white)
        assert (hidden == 0).mean() == pytest.approx(share, abs=0.02)


def test_a_stop_halves_the_light() -> None:
    grey = np.full((4, 4, 3), 200, np.uint8)
    dark = VideoCorruption(Corruption("video.darkness", 2, 0), "p/1").corrupt_pixels(grey)
    assert (dark[0, 0, 0] / 200) ** 2.2 == pytest.approx(0.25, rel=0.02)


def test_kinds_are_named_by_themselves_or_with_their_modality() -> None:
    assert select_kinds(["gaussian"], ["eeg", "audio"]) == ("eeg.gaussian", "audio.gaussian")
    assert select_kinds(["audio.gaussian", "pink"], ["eeg", "audio"]) == ("eeg.pink", "audio.gaussian")
    assert select_kinds([], ["video"]) == tuple(OF["video"])
    with pytest.raises(ConfigError, match='did you mean "video.blur"'):
        select_kinds(["vido.blur"], ["video"])


def test_audio_is_disturbed_at_the_rate_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", speech(), 48000, subtype="FLOAT")
    rates: list[tuple[int, int]] = []

    def corruption(x_T: np.ndarray, hz: int) -> np.ndarray:
        rates.append((len(x_T), hz))
        return -x_T

    flipped = audio.decode_audio(tmp_path / "a.wav", 16000, corruption=corruption).samples_T
    np.testing.assert_allclose(flipped, -audio.read_audio(tmp_path / "a.wav", 16000), atol=1e-6)
    assert rates == [(64000, 48000)]
