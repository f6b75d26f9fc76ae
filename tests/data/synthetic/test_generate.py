"""Synthetic subjects lie on disk exactly as EAV does, show their latent classes, and have the accuracy we claim."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import scipy.io
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks import fixed_weights
from eav_ray.data.datasets.eav import SYNTHETIC_MARKER
from eav_ray.data.synthetic import generate, ideal_observer, render, render_face
from eav_ray.data.synthetic.generate import SyntheticSpec
from eav_ray.data.synthetic.ideal_observer import CLASSES, MODALITIES
from eav_ray.errors import ConfigError

SMALL = SyntheticSpec(n_subjects=2, per_class=2, listening=True, seconds=5, video_size=(64, 48), fps=10)
DRAWS = 200_000
WINDOW_S, WINDOWS = 5, 2


def read_ground_truths(root: Path, subject_number: int) -> tuple[generate.GroundTruth, ...]:
    """Read what `synthetic.json` says about a subject, in time."""
    tree = json.loads((root / f"subject{subject_number}" / SYNTHETIC_MARKER).read_text())
    return tuple(generate.GroundTruth(**entry) for entry in tree["recordings"])


# --- the best possible accuracy ---


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Class, index of the useless modality (3 = none) and latents of many speaking recordings."""
    rng = np.random.default_rng(7)
    label = rng.integers(5, size=DRAWS)
    useless = np.where(rng.random(DRAWS) < ideal_observer.USELESS_SHARE, rng.integers(3, size=DRAWS), 3)
    latents = {}
    for index, modality in enumerate(MODALITIES):
        honest = (rng.random((DRAWS, 1)) > ideal_observer.get_confusion_matrix(modality).cumsum(1)[label][:, :-1]).sum(
            1
        )
        latents[modality] = np.where(useless == index, rng.integers(5, size=DRAWS), honest)
    return label, useless, latents


@pytest.mark.parametrize("modalities", [c for n in (1, 2, 3) for c in itertools.combinations(MODALITIES, n)])
def test_bayes_accuracy_is_what_an_observer_reaches_who_multiplies_what_can_be_trusted(modalities, drawn):
    label, useless, latents = drawn
    score = np.zeros((DRAWS, 5))
    for modality in modalities:
        trusted = useless != MODALITIES.index(modality)
        score += trusted[:, None] * np.log(ideal_observer.get_confusion_matrix(modality)).T[latents[modality]]
    score += 1e-9 * np.random.default_rng(0).random(score.shape)  # guess where nothing is known
    assert ideal_observer.bayes_accuracy(modalities) == pytest.approx((score.argmax(1) == label).mean(), abs=0.004)


@pytest.mark.parametrize("modalities", [c for n in (1, 2, 3) for c in itertools.combinations(MODALITIES, n)])
def test_a_cue_in_the_next_modality_helps_only_who_sees_that_one(modalities, drawn):
    label, useless, latents = drawn
    seen = [(index + 1) % 3 for index in range(3) if MODALITIES[(index + 1) % 3] in modalities]
    logs = {m: np.log(ideal_observer.get_confusion_matrix(m)).T[latents[m]] for m in modalities}
    # Where no cue is seen, each of the modalities whose cue would be elsewhere may be useless.
    likelihood = np.zeros((DRAWS, 5))
    for state, share in ((3, 0.7), (0, 0.1), (1, 0.1), (2, 0.1)):
        rest = np.exp(sum((v for m, v in logs.items() if m != [*MODALITIES, ""][state]), np.zeros((DRAWS, 5))))
        blind = rest * (0.2 if [*MODALITIES, ""][state] in modalities else 1)
        cue_seen = state < 3 and (state + 1) % 3 in seen
        matters = useless == state if cue_seen else ~np.isin(useless, [s for s in range(3) if (s + 1) % 3 in seen])
        likelihood += np.where(matters[:, None], share * blind, 0)
    likelihood *= 1 + 1e-9 * np.random.default_rng(0).random(likelihood.shape)
    found = ideal_observer.bayes_accuracy(modalities, cue="next")
    assert found == pytest.approx((likelihood.argmax(1) == label).mean(), abs=0.004)


def test_the_cue_is_carried_by_the_useless_modality_or_by_the_next_one():
    for cue, shift in (("own", 0), ("next", 1)):
        for truth in generate.draw_ground_truths(SyntheticSpec(cue=cue), 1):
            carrier = truth.useless_modality and MODALITIES[(MODALITIES.index(truth.useless_modality) + shift) % 3]
            assert truth.cue_modality == carrier


def test_the_cue_blind_accuracy_is_that_of_a_mixture_over_what_may_be_useless(drawn):
    label, _, latents = drawn
    rows = [ideal_observer.get_confusion_matrix(m).T[latents[m]] for m in MODALITIES]
    cases = [0.7 * np.prod(rows, axis=0)]
    cases += [0.1 * 0.2 * np.prod([r for k, r in enumerate(rows) if k != lost], axis=0) for lost in range(3)]
    assert fixed_weights.bayes_accuracy_without_cues() == pytest.approx(
        (np.sum(cases, axis=0).argmax(1) == label).mean(), abs=0.004
    )


def test_the_best_fixed_weights_reach_what_they_promise(drawn):
    label, _, latents = drawn
    weights, promised = fixed_weights.find_best_fixed_weights(steps=6)
    score = sum(
        w * np.log(0.9 * ideal_observer.get_confusion_matrix(m) + 0.02).T[latents[m]] for m, w in weights.items()
    )
    assert promised == pytest.approx((np.asarray(score).argmax(1) == label).mean(), abs=0.004)


def test_single_modalities_are_mediocre_and_ordered_and_the_three_together_are_good():
    audio, eeg, video = (ideal_observer.bayes_accuracy([m]) for m in MODALITIES)
    assert 0.5 < eeg < audio < video < 0.75
    assert 0.89 < ideal_observer.bayes_accuracy(MODALITIES) < 0.95


def test_whoever_sees_the_cue_beats_every_fixed_combination():
    blind = fixed_weights.bayes_accuracy_without_cues()
    assert fixed_weights.find_best_fixed_weights(steps=6)[1] <= blind + 1e-9
    assert ideal_observer.bayes_accuracy(MODALITIES) > blind + 0.02


def test_drawn_recordings_follow_the_confusion_matrices():
    drawn_by_subject = [generate.draw_ground_truths(SyntheticSpec(per_class=150), subject) for subject in range(1, 11)]
    drawn = list(itertools.chain(*drawn_by_subject))
    assert np.mean([t.useless_modality is not None for t in drawn]) == pytest.approx(0.3, abs=0.03)
    for modality in MODALITIES:
        counts = np.zeros((5, 5))
        for truth in drawn:
            counts[truth.label, truth.latents[modality]] += truth.useless_modality != modality
        assert counts / counts.sum(1, keepdims=True) == pytest.approx(
            ideal_observer.get_confusion_matrix(modality), abs=0.05
        )


# --- on disk ---


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    generate.generate_dataset(folder, SMALL)
    return folder


@pytest.mark.parametrize(("subject", "key"), [(1, "seg"), (2, "seg1")])
def test_eeg_and_labels_have_the_keys_and_shapes_of_eav(root, subject, key):
    eeg = scipy.io.loadmat(root / f"subject{subject}/EEG/subject{subject}_eeg.mat")[key]
    label = scipy.io.loadmat(root / f"subject{subject}/EEG/subject{subject}_eeg_label.mat")["label"]
    assert eeg.shape == (2500, 30, 20) and eeg.dtype == np.float32 and np.isfinite(eeg).all()
    assert label.shape == (10, 20)
    for truth in read_ground_truths(root, subject):
        expected = np.eye(10)[2 * truth.label + (truth.task == "Speaking")]
        assert (label[:, truth.key - 1] == expected).all()


@pytest.mark.parametrize("subject", [1, 2])
def test_file_names_carry_the_key_that_joins_modalities(root, subject):
    truth = {t.key: t for t in read_ground_truths(root, subject)}
    video = {int(p.name[:3]): p.stem.split("_") for p in (root / f"subject{subject}/Video").iterdir()}
    audio = {int(p.name[:3]): p.stem.split("_") for p in (root / f"subject{subject}/Audio").iterdir()}
    assert sorted(video) == sorted(truth) == list(range(1, 21))
    assert sorted(audio) == [key for key in truth if truth[key].task == "Speaking"]
    for key, parts in video.items():
        assert parts[1:2] + parts[3:] == ["Trial", truth[key].task, CLASSES[truth[key].label]]
    suffix = "Aud" if subject == 1 else "aud"
    for key, parts in audio.items():
        assert parts[3:] == ["Speaking", CLASSES[truth[key].label], suffix]
    assert any(audio[key][2] != video[key][2] for key in audio), "Trial_NN must not be a usable key"


def test_a_video_and_a_sound_decode_to_the_planned_size(root):
    video = sorted((root / "subject1/Video").iterdir())[0]
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == SMALL.fps
    assert len(frames) == 50 and frames[0].shape == (48, 64, 3)
    info = soundfile.info(sorted((root / "subject1/Audio").iterdir())[0])
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (16000, 1, 80000, "PCM_16")


def test_classes_are_mixed_in_time(root):
    labels = [t.label for t in read_ground_truths(root, 1)]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > 8


def test_a_v73_file_is_hdf5_with_reversed_axes(tmp_path):
    spec = SyntheticSpec(n_subjects=1, per_class=1, seconds=5, video_size=(48, 48), fps=1, mat_version="7.3")
    generate.generate_subject(tmp_path, 1, spec)
    path = tmp_path / "subject1/EEG/subject1_eeg.mat"
    with pytest.raises(NotImplementedError):  # SciPy's way of saying: this is v7.3
        scipy.io.loadmat(path)
    with h5py.File(path) as file:
        assert file["seg"].shape == (5, 30, 2500)  # pyright: ignore[reportAttributeAccessIssue]


def _signals(root: Path, subject: int) -> list[bytes]:
    folder = root / f"subject{subject}"
    mat = scipy.io.loadmat(folder / f"EEG/subject{subject}_eeg.mat")
    media = sorted([*folder.glob("Audio/*"), *folder.glob("Video/*")])
    return [next(v.tobytes() for k, v in mat.items() if k.startswith("seg")), *(p.read_bytes() for p in media)]


def test_the_same_seed_gives_the_same_subject_and_other_subjects_differ(tmp_path):
    spec = SyntheticSpec(n_subjects=1, per_class=1, seconds=5, video_size=(48, 48), fps=2)
    for name in ("a", "b"):
        generate.generate_subject(tmp_path / name, 1, spec)
    generate.generate_subject(tmp_path / "a", 2, spec)
    assert _signals(tmp_path / "a", 1) == _signals(tmp_path / "b", 1)
    assert not set(_signals(tmp_path / "a", 1)) & set(_signals(tmp_path / "a", 2))


def test_a_finished_subject_is_kept_and_an_interrupted_one_is_redone(tmp_path, monkeypatch):
    spec = SyntheticSpec(n_subjects=1, per_class=1, seconds=5, video_size=(48, 48), fps=1)
    with monkeypatch.context() as patch:
        patch.setattr(generate, "write_video", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate.generate_dataset(tmp_path, spec)
    assert not (tmp_path / "subject1").exists()
    generate.generate_dataset(tmp_path, spec)
    before = (tmp_path / "subject1" / SYNTHETIC_MARKER).stat().st_mtime_ns
    calls = []
    generate.generate_dataset(
        tmp_path, SyntheticSpec(**{**vars(spec), "n_subjects": 2}), progress=lambda *n: calls.append(n)
    )
    assert (tmp_path / "subject1" / SYNTHETIC_MARKER).stat().st_mtime_ns == before
    assert calls == [(1, 2), (2, 2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["subject1", "subject2"]


def test_folders_of_another_origin_are_not_touched(tmp_path):
    (tmp_path / "subject1").mkdir()
    with pytest.raises(ConfigError, match="was not generated"):
        generate.generate_subject(tmp_path, 1, SyntheticSpec())
    (tmp_path / "subject1" / SYNTHETIC_MARKER).write_text(json.dumps({"renderer": 0, "spec": {}}))
    with pytest.raises(ConfigError, match="other settings"):
        generate.generate_subject(tmp_path, 1, SyntheticSpec())


@pytest.mark.parametrize(
    "change",
    [
        {"n_subjects": 0},
        {"per_class": 200},
        {"audio_hz": 8000},
        {"video_size": (65, 48)},
        {"mat_version": "4"},
        {"kind": "easy"},
    ],
)
def test_a_spec_that_cannot_be_generated_names_the_key(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        SyntheticSpec(**change)


@pytest.mark.parametrize("modalities", [[], ["smell"], ["eeg", "eeg"]])
def test_an_observer_of_nothing_or_of_something_unknown_is_refused(modalities):
    with pytest.raises(ConfigError, match="audio, eeg, video"):
        ideal_observer.bayes_accuracy(modalities)


# --- what the signals show, to a linear classifier, in an unseen subject ---


def _windows(modality: str, subject: int, shown: int, useless: bool, take: int) -> list[np.ndarray]:
    """Simple features of each 5 s window of one recording."""
    cast = np.random.default_rng([11, subject])
    rng = np.random.default_rng([11, subject, shown, take])
    seconds = WINDOWS * WINDOW_S
    if modality == "eeg":
        x = render.render_eeg(render.draw_scalp(cast), shown, useless, rng, hz=500, seconds=seconds)
        return [_band_powers(w) for w in np.split(x, WINDOWS)]
    if modality == "audio":
        x = render.render_audio(render.draw_voice(cast), shown, useless, rng, hz=16000, seconds=seconds)
        return [_mel_energies(w) for w in np.split(x, WINDOWS)]
    face = render_face.draw_face(cast)
    frames = list(render_face.render_video(face, shown, useless, rng, size=(96, 72), fps=6, seconds=seconds))
    return [_edges(w) for w in np.split(np.array(frames, np.float32), WINDOWS)]


def _band_powers(x_TC: np.ndarray) -> np.ndarray:
    x_TC = x_TC - x_TC.mean(0)
    power = np.abs(np.fft.rfft((x_TC - x_TC.mean(1, keepdims=True)).T * np.hanning(len(x_TC)))) ** 2
    f = np.fft.rfftfreq(len(x_TC), 1 / 500)
    bands = [(0.5, 1.5), (2, 4), (4, 7), (8, 13), (14, 20), (21, 30), (32, 45)]
    return np.log([power[:, (f >= low) & (f < high)].mean(1) for low, high in bands]).ravel()


def _mel_energies(x: np.ndarray) -> np.ndarray:
    power = np.abs(np.fft.rfft(x[: len(x) // 512 * 512].reshape(-1, 512) * np.hanning(512))) ** 2
    f, edges = np.fft.rfftfreq(512, 1 / 16000), np.geomspace(100, 7500, 21)
    bands = [power[:, (f >= low) & (f < max(high, low + 40))].mean(1) for low, high in itertools.pairwise(edges)]
    mel = np.log(np.array(bands) + 1e-9)
    return np.concatenate([mel.mean(1), mel.std(1), np.percentile(mel, 10, axis=1)])


def _edges(x_THWC: np.ndarray) -> np.ndarray:
    """Mean contrast across and along, in blocks of 3 x 3 pixels: raw pixels would be mostly the colour of the skin."""
    grey_THW = np.log(x_THWC.mean(-1) + 10)
    down, across = (np.abs(np.diff(grey_THW, axis=axis)).mean(0)[:69, :93] for axis in (1, 2))
    return np.array([edge.reshape(23, 3, 31, 3).mean((1, 3)) for edge in (down, across)]).ravel()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_linear_classifier_sees_class_and_cue_in_every_window_of_an_unseen_person(modality):
    features, shown, useless, subject = [], [], [], []
    for who, label, take in itertools.product(range(7), range(5), range(2)):
        for x in _windows(modality, who, label, take == 0, take):
            features.append(x)
            shown.append(label)
            useless.append(take == 0)
            subject.append(who)
    x, unseen = np.array(features), np.array(subject) >= 5
    for target, least in ((np.array(shown), 0.9), (np.array(useless), 0.95)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model.fit(x[~unseen], target[~unseen])
        assert model.score(x[unseen], target[unseen]) > least


@pytest.mark.parametrize("modality", ["audio", "eeg"])
def test_in_the_hard_kind_only_the_order_within_a_window_tells_the_class(modality):
    """Means over a window are at chance in an unseen person; those of each second find nearly all."""
    whole, seconds, shown, subject = [], [], [], []
    for who, label, take in itertools.product(range(9), range(5), range(2)):
        cast = np.random.default_rng([12, who])
        rng = np.random.default_rng([12, who, label, take])
        words = {"seconds": WINDOWS * WINDOW_S, "hard": True}
        if modality == "eeg":
            x = render.render_eeg(render.draw_scalp(cast, hard=True), label, False, rng, hz=500, **words)
            compute = _band_powers
        else:
            x = render.render_audio(render.draw_voice(cast, hard=True), label, False, rng, hz=16000, **words)
            compute = _mel_energies
        for window in np.split(x, WINDOWS):
            parts = np.array([compute(part) for part in np.split(window, WINDOW_S)])
            whole.append(np.concatenate([parts.mean(0), parts.std(0)]))
            seconds.append(parts.ravel())
            shown.append(label)
            subject.append(who)
    label, unseen = np.array(shown), np.array(subject) >= 6
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    accuracy = [
        model.fit(x[~unseen], label[~unseen]).score(x[unseen], label[unseen]) for x in map(np.array, (whole, seconds))
    ]
    assert accuracy[0] < 0.35 and accuracy[1] > 0.9, accuracy


def test_in_the_hard_kind_means_over_pictures_of_people_who_move_tell_little():
    """Of people who sit still in the middle, single pictures tell the class to who has seen others of them."""

    def draw(hard_traits):
        pictures, shown, subject = [], [], []
        for who, label, take in itertools.product(range(12), range(5), range(2)):
            face = render_face.draw_face(np.random.default_rng([13, who]), hard=hard_traits)
            rng = np.random.default_rng([13, who, label, take])
            frames = render_face.render_video(
                face, label, False, rng, size=(96, 72), fps=1, seconds=WINDOW_S, hard=True
            )
            pictures.append([_edges(frame[None].astype(np.float32)) for frame in frames])
            shown.append(label)
            subject.append(who)
        return np.array(pictures), np.array(shown), np.array(subject) >= 9

    model = make_pipeline(StandardScaler(), SVC(C=10.0))
    x_BTF, label, unseen = draw(hard_traits=True)
    whole = np.concatenate([x_BTF.mean(1), x_BTF.std(1)], 1)
    assert model.fit(whole[~unseen], label[~unseen]).score(whole[unseen], label[unseen]) < 0.5
    x_BTF, label, unseen = draw(hard_traits=False)
    model.fit(x_BTF[~unseen].reshape(-1, x_BTF.shape[-1]), label[~unseen].repeat(WINDOW_S))
    votes = model.decision_function(x_BTF[unseen].reshape(-1, x_BTF.shape[-1])).reshape(-1, WINDOW_S, 5).sum(1)
    assert (votes.argmax(1) == label[unseen]).mean() > 0.7


def test_the_hard_kind_is_generated_and_is_not_taken_for_the_plain_one(tmp_path):
    spec = SyntheticSpec(n_subjects=1, per_class=1, seconds=5, kind="hard")
    generate.generate_subject(tmp_path, 1, spec)
    assert len(list((tmp_path / "subject1" / "Video").iterdir())) == 5
    with pytest.raises(ConfigError, match="other settings"):
        generate.generate_subject(tmp_path, 1, replace(spec, kind="plain"))


def test_people_of_before_there_were_kinds_are_plain_ones(tmp_path):
    spec = replace(SMALL, n_subjects=1)
    generate.generate_subject(tmp_path, 1, spec)
    marker = tmp_path / "subject1" / SYNTHETIC_MARKER
    tree = json.loads(marker.read_text())
    del tree["spec"]["kind"]
    marker.write_text(json.dumps(tree))
    generate.generate_subject(tmp_path, 1, spec)
    with pytest.raises(ConfigError, match="other settings"):
        generate.generate_subject(tmp_path, 1, replace(spec, kind="hard"))


@pytest.mark.parametrize("hz", generate.AUDIO_RATES)
def test_every_audio_rate_gives_sound_within_full_scale(hz):
    rng = np.random.default_rng(0)
    x = render.render_audio(render.draw_voice(rng), 2, False, rng, hz=hz, seconds=5)
    assert x.shape == (5 * hz,) and x.dtype == np.float32
    assert x.std() > 0.01 and np.abs(x).max() < 1
