"""The public face: names that are there without anything heavy, and a predictor that takes what Python code has."""

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import soundfile

import eav_ray
from eav_ray import api
from eav_ray.config import load_experiment
from eav_ray.data.datasets.eav import EAV_CHANNELS
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import (
    AUDIO_HZ,
    EEG_HZ,
    Sent,
    make_predictor,
    write_checkpoint,
    write_normalising_checkpoint,
)

SENT = Sent(10.0)
FACE = {"ConfigError", "DataError", *api.__all__}


# Names


def test_the_face_is_what_is_promised() -> None:
    assert set(eav_ray.__all__) == FACE == set(dir(eav_ray)) & FACE
    for name in FACE:
        assert getattr(eav_ray, name).__doc__, name
    assert eav_ray.load_experiment is load_experiment and eav_ray.Predictor is api.Predictor
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = eav_ray.nosuch


def test_no_room_of_the_package_has_the_name_of_a_public_function() -> None:
    """To import a room would put it in the place of the function."""
    rooms = {path.stem for path in (REPOSITORY / "eav_ray").iterdir()}
    assert not rooms & FACE


HEAVY = ("av", "mne", "numpy", "pandas", "pyarrow", "ray", "scipy", "torch")


@pytest.mark.parametrize(
    ("use", "imported"), [("", set()), ("eav_ray.load_experiment('fusion')", set()), ("eav_ray.Predictor", {"torch"})]
)
def test_a_name_is_imported_when_it_is_used(use: str, imported: set[str]) -> None:
    code = f"import sys, eav_ray\n{use}\nprint(*set(sys.modules) & set({HEAVY}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert imported <= found and "ray" not in found and (imported or not found)


# Predictions


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and one recording of 10 s, as files."""
    folder = tmp_path_factory.mktemp("files")
    Path(write_checkpoint(folder / "store")).rename(folder / "best")
    Path(write_normalising_checkpoint(folder / "other_store")).rename(folder / "normalised")
    (folder / "speech.wav").write_bytes(SENT.wav)
    (folder / "later.wav").write_bytes(Sent(10.0, seed=1).wav)
    make_raw().save(folder / "recorded_raw.fif", verbose="ERROR")
    write_film(folder / "face.mp4")
    return folder


def make_raw(order: slice = slice(None)) -> mne.io.RawArray:
    """The EEG in volts, with a channel that is none."""
    names = [*EAV_CHANNELS[order], "EOG"]
    info = mne.create_info(names, EEG_HZ, ["eeg"] * len(EAV_CHANNELS) + ["eog"], verbose="ERROR")
    values_CT = np.vstack([SENT.eeg_CT[order], SENT.eeg_CT[:1] * 5]).astype(np.float64) * 1e-6
    return mne.io.RawArray(values_CT, info, verbose="ERROR")


def write_film(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in make_pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def make_pictures() -> np.ndarray:
    """(50, 48, 64, 3): 10 s of pictures with large areas, which compression leaves as they are."""
    corners = np.random.default_rng(5).integers(0, 255, (50, 3, 4, 3)).astype(np.uint8)
    return corners.repeat(16, axis=1).repeat(16, axis=2)


@pytest.fixture(scope="module")
def predictor(files: Path) -> api.Predictor:
    return api.Predictor(files / "best", device="cpu")


def numbers(prediction: api.Prediction) -> np.ndarray:
    """All probabilities of a recording and its windows, NaN where there are none."""
    parts = [prediction, *prediction.windows]
    rows = [[*p.probabilities.values(), *(v for m in p.by_modality.values() for v in m.values())] for p in parts]
    return np.array(rows, dtype=float)


def test_the_examples_run(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(verbose=False)
    ran = 0
    things = ((load_experiment, "load_experiment"), (api.Predictor, "Predictor"), (api.Prediction, "Prediction"))
    for thing, name in things:
        for example in finder.find(thing, name, globs={}):
            runner.run(example)
            ran += len(example.examples)
    assert runner.summarize(verbose=False).failed == 0 and ran > 10


def test_a_recording_is_predicted_as_a_request_is(predictor: api.Predictor, files: Path) -> None:
    found = predictor.predict(eeg=make_raw(), audio=files / "speech.wav", video=str(files / "face.mp4"))
    assert found.used == ("audio", "eeg", "video") == predictor.modalities and found.not_used == {}
    assert [w.start_s for w in found.windows] == [0, 5] and all(w.used == found.used for w in found.windows)
    assert found.predicted == max(found.probabilities, key=lambda name: found.probabilities[name] or 0)
    for shares in (found.probabilities, *found.by_modality.values(), found.weights):
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.probabilities) == list(predictor.classes) and set(found.by_modality) == set(predictor.modalities)
    assert predictor.eeg_channels == EAV_CHANNELS == make_predictor().inputs.eeg_channel_names


def test_a_prediction_becomes_a_table_with_a_row_a_window(predictor: api.Predictor, files: Path) -> None:
    found = predictor.predict(audio=files / "speech.wav")
    table = found.to_dataframe()
    assert table["start_s"].tolist() == [0, 5] and table["used"].tolist() == ["audio", "audio"]
    assert table["predicted"].tolist() == [w.predicted for w in found.windows]
    name = predictor.classes[1]
    assert table[f"probability.{name}"].tolist() == [w.probabilities[name] for w in found.windows]
    assert table[f"audio.probability.{name}"].notna().all() and table[f"eeg.probability.{name}"].isna().all()
    assert table[["weight.audio", "corrected.audio"]].to_numpy() == pytest.approx(1, abs=1e-6)
    assert len(found.windows[0].to_dataframe()) == 1


def test_eeg_is_the_same_however_it_is_given(predictor: api.Predictor, files: Path) -> None:
    expected = numbers(predictor.predict(eeg=SENT.eeg_CT, eeg_hz=EEG_HZ, eeg_channels=EAV_CHANNELS))
    backwards = slice(None, None, -1)
    ways = {
        "a file": {"eeg": files / "recorded_raw.fif"},
        "an object of MNE": {"eeg": make_raw()},
        "channels in another order": {"eeg": make_raw(backwards)},
        "an array in another order": {
            "eeg": SENT.eeg_CT[backwards],
            "eeg_hz": EEG_HZ,
            "eeg_channels": EAV_CHANNELS[backwards],
        },
        "an array in the order of training": {"eeg": SENT.eeg_CT, "eeg_hz": EEG_HZ},
        "volts": {"eeg": SENT.eeg_CT * 1e-6, "eeg_hz": EEG_HZ, "eeg_unit": "volt"},
    }
    for name, given in ways.items():
        found = predictor.predict(**given)
        assert found.used == ("eeg",), name
        np.testing.assert_allclose(numbers(found), expected, atol=1e-5, err_msg=name)


def test_electrodes_are_known_by_position_whatever_they_are_called(predictor: api.Predictor) -> None:
    """In another order, as other recorders spell them, and with a channel more."""
    expected = numbers(predictor.predict(eeg=SENT.eeg_CT, eeg_hz=EEG_HZ, eeg_channels=EAV_CHANNELS))
    order = np.random.default_rng(0).permutation(len(EAV_CHANNELS))
    older = {"T7": "T3", "T8": "T4", "P7": "T5", "P8": "T6"}
    names = [f"EEG {older.get(name, name).upper()}-REF" for name in np.array(EAV_CHANNELS)[order]]
    values_CT = np.concatenate([SENT.eeg_CT[order], 500 * SENT.eeg_CT[:1]])
    found = predictor.predict(eeg=values_CT, eeg_hz=EEG_HZ, eeg_channels=(*names, "ECG"))
    np.testing.assert_array_equal(numbers(found), expected)


def test_audio_is_the_same_as_a_file_and_as_an_array(predictor: api.Predictor, files: Path, tmp_path: Path) -> None:
    expected = numbers(predictor.predict(audio=files / "speech.wav"))
    float_T = SENT.audio_T / np.float32(32768)
    soundfile.write(tmp_path / "speech.flac", SENT.audio_T, AUDIO_HZ)
    for audio in (SENT.audio_T, float_T, np.stack([float_T, float_T], axis=1)):
        np.testing.assert_array_equal(numbers(predictor.predict(audio=audio, audio_hz=AUDIO_HZ)), expected)
    np.testing.assert_array_equal(numbers(predictor.predict(audio=tmp_path / "speech.flac")), expected)


def test_video_is_nearly_the_same_as_a_film_and_as_an_array(predictor: api.Predictor, files: Path) -> None:
    film = predictor.predict(video=files / "face.mp4")
    pictures = predictor.predict(video=make_pictures(), video_fps=5)
    assert pictures.used == ("video",) and len(pictures.windows) == len(film.windows) == 2
    np.testing.assert_allclose(numbers(pictures), numbers(film), atol=0.02)


def test_a_modality_that_cannot_be_used_is_named_and_the_others_are_used(
    predictor: api.Predictor, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    found = predictor.predict(audio=files / "speech.wav", video=tmp_path / "broken.mp4")
    assert found.used == ("audio",) and found.not_used["eeg"] == "not sent"
    assert "video cannot be decoded" in found.not_used["video"]
    assert set(found.by_modality["video"].values()) == {None} and found.weights["video"] == 0
    with pytest.raises(eav_ray.DataError, match="nothing of this recording can be used .*video cannot be decoded"):
        predictor.predict(video=tmp_path / "broken.mp4")
    with pytest.raises(
        eav_ray.DataError, match="nothing of this recording .*eeg: what was sent has no EEG channel Fp1"
    ):
        predictor.predict(eeg=SENT.eeg_CT[1:], eeg_hz=EEG_HZ, eeg_channels=EAV_CHANNELS[1:])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "give at least one of eeg, audio, video"),
        ({"eeg": np.zeros((30, 100))}, "eeg is an array, .*eeg_hz=500"),
        ({"audio": np.zeros(100)}, "audio is an array, .*audio_hz=16000"),
        ({"video": np.zeros((5, 8, 8, 3), np.uint8)}, "video is an array, .*video_fps=25"),
        ({"eeg": np.zeros(100), "eeg_hz": 500}, r"eeg has shape \(100,\); give \(channels, samples\)"),
        ({"eeg": np.zeros((2, 9)), "eeg_hz": 500, "eeg_channels": ("A",)}, r"\(2, 9\); give \(1, samples\)"),
        ({"eeg": np.zeros((30, 9)), "eeg_hz": 500, "eeg_unit": "mV"}, "eeg_unit is 'mV'; use one of auto, microvolt"),
        ({"audio": np.zeros(9, int), "audio_hz": 16000}, r"holds int64; give \(samples,\)"),
        ({"video": np.zeros((5, 8, 8, 3)), "video_fps": 5}, "holds float64; give .*uint8"),
    ],
)
def test_what_cannot_be_understood_is_refused(predictor: api.Predictor, given: dict, expected: str) -> None:
    with pytest.raises(eav_ray.ConfigError, match=expected):
        predictor.predict(**given)


def test_files_that_are_missing_are_named(predictor: api.Predictor) -> None:
    for modality in ("audio", "video"):
        with pytest.raises(eav_ray.DataError, match=f"{modality} is /nowhere, where there is no file"):
            predictor.predict(**{modality: "/nowhere"})
    with pytest.raises(eav_ray.DataError, match="/nowhere is missing"):
        predictor.predict(eeg="/nowhere")
    with pytest.raises(eav_ray.DataError, match="/nowhere"):
        api.Predictor("/nowhere/best")


# People by whom a model normalises


PLAIN = {"model__audio": {"kind": "mfcc", "width": 16, "segments": 2, "subject_normalisation": "none"}}


def make_voices(n: int, gain: float = 1.0) -> list[dict[str, object]]:
    """Recordings of noise of other colours, as `predict` takes them."""
    rng = np.random.default_rng(3)
    found = []
    for k in range(n):
        x_T = np.convolve(rng.standard_normal(7 * AUDIO_HZ), np.linspace(1, 0, 2 + 3 * k), mode="same")
        found.append({"audio": (gain * 0.1 * x_T / np.abs(x_T).max()).astype(np.float32), "audio_hz": AUDIO_HZ})
    return found


def test_a_person_is_measured_before_they_are_predicted(files: Path) -> None:
    predictor = api.Predictor(files / "normalised", device="cpu")
    assert (predictor.access, predictor.normalised) == ("unlabelled_block", ("audio",))
    quiet, loud = make_voices(4), make_voices(4, gain=5.0)
    with pytest.raises(eav_ray.ConfigError, match=r"unlabelled_block.*measure_subject first"):
        predictor.predict(**quiet[0])
    assert predictor.measure_subject(quiet) == 4
    expected = [numbers(predictor.predict(**one)) for one in quiet]
    mixed_up = [numbers(predictor.predict(**one)) for one in loud]
    assert not np.allclose(mixed_up, expected, atol=1e-2)
    # The same person farther from the microphone is the same, measured as such; in another order too.
    assert predictor.measure_subject(loud[::-1]) == 4
    np.testing.assert_allclose([numbers(predictor.predict(**one)) for one in loud], expected, atol=1e-3)


def test_only_the_first_recordings_count_where_the_level_allows_no_more(tmp_path: Path) -> None:
    words = {"split__access": "unlabelled_first_n", "split__access_recordings": 2}
    predictor = api.Predictor(write_normalising_checkpoint(tmp_path, **words), device="cpu")
    voices = make_voices(4)
    assert predictor.measure_subject(voices[:2]) == 2
    expected = numbers(predictor.predict(**voices[3]))
    assert predictor.measure_subject(voices) == 2
    np.testing.assert_array_equal(numbers(predictor.predict(**voices[3])), expected)
    predictor.measure_subject(voices[1:])
    assert not np.allclose(numbers(predictor.predict(**voices[3])), expected, atol=1e-3)


def test_a_modality_in_which_a_person_was_not_measured_is_not_used(files: Path, tmp_path: Path) -> None:
    more = {"data__modalities": ["audio", "eeg"]}
    more |= {"model__eeg": {"kind": "bandpower", "width": 16, "subject_normalisation": "standardise"}}
    predictor = api.Predictor(write_normalising_checkpoint(tmp_path, **more), device="cpu")
    assert predictor.normalised == ("audio", "eeg")
    assert predictor.measure_subject([{"audio": files / "speech.wav"}, {"audio": files / "later.wav"}]) == 2
    alone = predictor.predict(audio=files / "speech.wav")
    both = predictor.predict(audio=files / "speech.wav", eeg=make_raw())
    assert both.used == ("audio",) and "measured in 0 of 2 windows with eeg" in both.not_used["eeg"]
    np.testing.assert_array_equal(numbers(both), numbers(alone))
    with pytest.raises(eav_ray.DataError, match="nothing of this recording can be used .*measured in 0 of 2 windows"):
        predictor.predict(eeg=make_raw())
    predictor.measure_subject([{"audio": files / "speech.wav", "eeg": make_raw()}])
    assert predictor.predict(audio=files / "speech.wav", eeg=make_raw()).used == ("audio", "eeg")


def test_nobody_is_predicted_by_the_person_before(files: Path) -> None:
    predictor = api.Predictor(files / "normalised", device="cpu")
    first, second = make_voices(2), make_voices(1, gain=5.0)
    predictor.measure_subject(first)
    with pytest.raises(eav_ray.DataError, match="1 windows by which"):
        predictor.measure_subject([{"audio": second[0]["audio"][: 5 * AUDIO_HZ], "audio_hz": AUDIO_HZ}])
    with pytest.raises(eav_ray.ConfigError, match="measure_subject first"):
        predictor.predict(**second[0])


def test_given_features_are_predicted_from_a_file_and_from_rows(tmp_path: Path) -> None:
    more: dict[str, Any] = {"data__modalities": ["audio", "face"], "preprocessing__features": {"face": {"width": 3}}}
    more |= {"model__face": {"kind": "features", "width": 16, "subject_normalisation": "none"}}
    predictor = api.Predictor(write_normalising_checkpoint(tmp_path, split__access="source_only", **more, **PLAIN))
    row = np.array([0.5, np.nan, 2.0])
    np.save(tmp_path / "row.npy", row)
    given = predictor.predict(features={"face": row})
    assert given.used == ("face",) and given.not_used["audio"] == "not sent"
    np.testing.assert_array_equal(numbers(predictor.predict(features={"face": tmp_path / "row.npy"})), numbers(given))
    rows = predictor.predict(features={"face": np.tile(row, (20, 1))}, features_hz={"face": 2})
    np.save(tmp_path / "rows.npy", np.tile(row, (20, 1)))
    stored = predictor.predict(features={"face": tmp_path / "rows.npy"}, features_hz={"face": 2})
    np.testing.assert_array_equal(numbers(stored), numbers(rows))
    (tmp_path / "table.csv").write_text("AU01\n1\n")
    assert len(rows.windows) == 2
    np.testing.assert_allclose(numbers(rows)[0], numbers(given)[0], atol=1e-5)
    for words, reason in (
        ({"features": {"fase": row}}, 'the model has face; did you mean "face"'),
        ({"features": {"face": np.ones((4, 3))}}, "4 rows, so their rate is needed"),
        ({"features": {"face": np.array(["a"])}}, "give an array of numbers"),
        ({"features": {"face": [1.0, 2.0]}}, "is a list; give an array"),
        ({"features": row}, "features is a ndarray; give it by name"),
        ({"features": {"face": row}, "features_hz": 2}, "features_hz is a int; give it by name"),
        ({"features": {"face": row}, "features_hz": {"face": np.inf}}, "give the rows a second"),
        ({"features": {"face": tmp_path / "table.csv"}}, r"give a \.npy"),
        ({"features": {"face": np.ones((10, 3))}, "features_hz": {"face": 1e-3}}, "lasts at most 3600 s"),
        ({"features": {"face": tmp_path / "none.npy"}}, "where there is no file"),
        ({"features": {"face": np.ones(4)}}, r"face: .*wants rows of 3 features"),
    ):
        with pytest.raises((eav_ray.ConfigError, eav_ray.DataError), match=reason):
            predictor.predict(**words)


def test_what_cannot_be_measured_is_told(files: Path, predictor: api.Predictor, tmp_path: Path) -> None:
    with pytest.raises(eav_ray.ConfigError, match="does not normalise within people"):
        predictor.measure_subject([{"audio": files / "speech.wav"}])
    normalised = api.Predictor(files / "normalised", device="cpu")
    with pytest.raises(eav_ray.ConfigError, match="give recordings of the person"):
        normalised.measure_subject([])
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(
        eav_ray.DataError,
        match=r"0 windows by which the person can be measured; at least 2 that differ are needed \(audio: .*\)",
    ):
        normalised.measure_subject([{"audio": tmp_path / "broken.wav"}])
