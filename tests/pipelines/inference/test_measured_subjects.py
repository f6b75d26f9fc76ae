"""A server whose model normalises within subjects measures who is predicted, and says by what; so does a stream."""

import base64
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from eav_ray.evaluation.predictor import Predictor
from eav_ray.pipelines.inference.http_app import Limits, make_app
from eav_ray.training.checkpoint import open_finished_checkpoint
from tests.helpers.serving import AUDIO_HZ, Sent, encode_audio, encode_message, write_normalising_checkpoint

LIMITS = Limits(n_measured_windows=3, max_unusable_messages=5)
FACE = {"columns": ["AU01", "AU12", "AU45"], "steps": 5}


@cache
def voice(k: int, seconds: int = 10) -> Sent:
    sent = Sent(seconds, seed=k)
    # Each its own timbre, so that they differ in what is measured.
    x_T = np.convolve(sent.audio_T, np.linspace(1, 0, 2 + 3 * k), mode="same")
    sent.audio_T = (8000 * x_T / np.abs(x_T).max()).astype(np.int16)
    return sent


def open_client(folder: Path, **changes: Any) -> TestClient:
    predictor = Predictor(
        open_finished_checkpoint(write_normalising_checkpoint(folder, **changes)), torch.device("cpu")
    )
    return TestClient(make_app(predictor, "tiny", limits=LIMITS))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with open_client(tmp_path_factory.mktemp("block")) as made:
        yield made


@pytest.fixture(scope="module")
def first_n(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    words = {"split__access": "unlabelled_first_n", "split__access_recordings": 2}
    with open_client(tmp_path_factory.mktemp("first"), **words) as made:
        yield made


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    words = {
        "data__modalities": ["audio", "face"],
        "preprocessing__features": {"face": FACE},
        "model__face": {"kind": "features", "width": 16, "subject_normalisation": "standardise"},
    }
    with open_client(tmp_path_factory.mktemp("faces"), **words) as made:
        yield made


def measure(client: TestClient, *bodies: dict[str, Any]) -> dict[str, Any]:
    """Measure recordings one after the other; returns the last answer."""
    answer: dict[str, Any] = {}
    for body in bodies:
        done = client.post("/measure", json=body | ({"subject": answer["subject"]} if answer else {}))
        assert done.status_code == 200, done.text
        answer = done.json()
    return answer


def test_health_says_what_may_be_known_of_a_subject(client: TestClient, first_n: TestClient) -> None:
    tree = client.get("/health").json()
    assert tree["access"] == "unlabelled_block" and tree["normalised"] == ["audio"]
    assert first_n.get("/health").json()["access"] == "unlabelled_first_n"


def test_nobody_is_predicted_unmeasured(client: TestClient) -> None:
    done = client.post("/predict", json=voice(1).tree("audio"))
    assert done.status_code == 422 and "POST /measure" in done.json()["error"]


def test_a_measured_subject_is_predicted_as_by_the_predictor(client: TestClient, tmp_path: Path) -> None:
    import eav_ray

    recordings = [voice(k).tree("audio") for k in (1, 2)]
    measured = measure(client, *recordings)
    assert measured["recordings"] == 2 and measured["measured_windows"] == {"audio": 4}
    done = client.post("/predict", json=recordings[0] | {"subject": measured["subject"]})
    local = eav_ray.Predictor(write_normalising_checkpoint(tmp_path), device="cpu")
    sounds = [{"audio": voice(k).audio_T, "audio_hz": AUDIO_HZ} for k in (1, 2)]
    assert local.measure_subject(sounds) == 2
    assert done.json()["probabilities"] == pytest.approx(local.predict(**sounds[0]).probabilities, abs=6e-5)
    # The same as a form.
    form = {"subject": json.dumps(measured["subject"])}
    formed = client.post("/predict", files={"audio": voice(1).wav}, data=form)
    assert formed.json() == done.json()


def test_somebody_else_is_predicted_otherwise(client: TestClient) -> None:
    body = voice(1).tree("audio")
    answers = [
        client.post(
            "/predict", json=body | {"subject": measure(client, *(voice(k).tree("audio") for k in ks))["subject"]}
        )
        for ks in ((1, 2), (3, 4))
    ]
    first, second = (list(a.json()["probabilities"].values()) for a in answers)
    assert not np.allclose(first, second, atol=1e-3)


def test_no_more_recordings_count_than_the_level_allows(first_n: TestClient) -> None:
    measured = measure(first_n, *(voice(k).tree("audio") for k in (1, 2)))
    more = first_n.post("/measure", json=voice(3).tree("audio") | {"subject": measured["subject"]})
    assert more.status_code == 422 and "as many as split.access_recordings lets count" in more.json()["error"]


def test_what_is_sent_of_a_subject_is_checked(client: TestClient) -> None:
    body = voice(1).tree("audio")
    for subject in ({}, [], "x", 5, {"model": "other", "modalities": {}}):
        done = client.post("/predict", json=body | {"subject": subject})
        assert done.status_code == 400 and "POST /measure" in done.json()["error"], subject
    done = client.post("/measure", json=voice(1).tree("eeg"))
    assert (
        done.status_code == 422 and "nothing in this request can be measured (audio: not sent)" in done.json()["error"]
    )


def test_one_window_measures_nobody(client: TestClient) -> None:
    short = voice(1, 5).tree("audio")
    measured = measure(client, short)
    done = client.post("/predict", json=short | {"subject": measured["subject"]})
    assert done.status_code == 422 and "measured in 1 of 2 windows" in done.json()["error"]


def test_a_model_that_normalises_nothing_measures_nobody(tmp_path: Path) -> None:
    with open_client(tmp_path, split__access="source_only", model__audio={"kind": "mfcc", "width": 16}) as client:
        done = client.post("/measure", json=voice(1).tree("audio"))
        assert done.status_code == 422 and "without measuring" in done.json()["error"]
        assert client.post("/predict", json=voice(1).tree("audio")).status_code == 200


# Streams


def listen(socket: Any, until_s: float) -> list[dict[str, Any]]:
    """Take answers up to one at a time."""
    answers: list[dict[str, Any]] = []
    while not answers or answers[-1]["time"] < until_s:
        tree = json.loads(socket.receive_text())
        if "waiting" not in tree:
            answers.append(tree)
    return answers


def send_second(socket: Any, sent: Sent, k: int) -> None:
    socket.send_bytes(encode_audio(float(k), sent.audio_T[k * AUDIO_HZ : (k + 1) * AUDIO_HZ]))


def stream(socket: Any, sent: Sent, seconds: int) -> list[dict[str, Any]]:
    """Stream second after second, each answered before the next is sent."""
    answers: list[dict[str, Any]] = []
    for k in range(seconds):
        send_second(socket, sent, k)
        answers += listen(socket, k + 1.0)
    return answers


@pytest.mark.parametrize(("level", "last"), [("client", "growing"), ("first_n", "fixed")])
def test_a_stream_measures_first_and_says_when_it_changes(
    level: str, last: str, request: pytest.FixtureRequest
) -> None:
    with request.getfixturevalue(level).websocket_connect("/stream") as socket:
        answers = stream(socket, voice(1, 25), 25)
    described = [a["subject"]["audio"] for a in answers]
    # Windows of 5 s that do not overlap: they end at 5, 10, 15, 20 and 25 s.
    counts = [0] * 4 + [1] * 5 + [2] * 5 + [3] * 5 + ([4] * 5 + [5] if last == "growing" else [3] * 6)
    assert [d["windows"] for d in described] == counts
    assert [d["state"] for d in described] == ["measuring"] * 14 + [last] * 11
    changed = [5, 10, 15, 20, 25] if last == "growing" else [5, 10, 15]
    assert [k + 1 for k, d in enumerate(described) if d["changed"]] == changed
    for k, answer in enumerate(answers):
        assert (answer["predicted"] is not None) == (k >= 14)
    assert "measured in 2 of 3 windows with audio" in answers[12]["not_used"]["audio"]


def test_what_is_sent_shortens_the_measuring_of_no_other_modality(faces: TestClient) -> None:
    measured = measure(faces, voice(1).tree("audio"), voice(2).tree("audio"))
    with faces.websocket_connect("/stream") as socket:
        socket.send_text(json.dumps({"subject": measured["subject"]}))
        for k, row in enumerate(make_rows(11)):
            socket.send_bytes(encode_message(row.tobytes(), modality="face", time=k / 2))
        answer = listen(socket, 10.0)[-1]
    assert answer["subject"]["audio"]["state"] == "growing" and answer["subject"]["face"]["state"] == "measuring"
    assert "of 3 windows with face" in answer["not_used"]["face"]
    with faces.websocket_connect("/stream") as socket:
        socket.send_text(json.dumps({"subject": measured["subject"] | {"modalities": {}}}))
        answer = stream(socket, voice(1), 10)[-1]
    assert answer["subject"]["audio"]["state"] == "measuring"


def test_a_text_of_megabytes_is_not_read(client: TestClient) -> None:
    with client.websocket_connect("/stream") as socket:
        socket.send_text('{"subject": [' + "[]," * 2_000_000 + "0]}")
        send_second(socket, voice(1), 0)
        assert "at most" in listen(socket, 1.0)[0]["error"]


def test_a_stream_by_whom_was_measured_before_is_predicted_at_once(client: TestClient, first_n: TestClient) -> None:
    for server, state in ((client, "growing"), (first_n, "fixed")):
        measured = measure(server, voice(1).tree("audio"), voice(2).tree("audio"))
        with server.websocket_connect("/stream") as socket:
            socket.send_text(json.dumps({"subject": measured["subject"]}))
            answers = stream(socket, voice(1), 5)
        assert answers[0]["subject"]["audio"] == {"windows": 4, "state": state, "changed": True}
        assert not answers[1]["subject"]["audio"]["changed"] and answers[4]["used"] == ["audio"]
        if state == "fixed":
            body = voice(1, 5).tree("audio") | {"subject": measured["subject"]}
            body["audio"] = base64.b64encode(cut(voice(1), 5)).decode()
            expected = server.post("/predict", json=body).json()
            assert answers[4]["probabilities"] == pytest.approx(expected["probabilities"], abs=6e-5)


def cut(sent: Sent, seconds: int) -> bytes:
    part = Sent(seconds)
    part.audio_T = sent.audio_T[: seconds * AUDIO_HZ]
    return part.wav


def test_text_that_is_no_subject_is_told(client: TestClient) -> None:
    for text, reason in (("hello", "signals are binary"), ('{"subject": {}}', "POST /measure"), ('{"x": 1}', '"x"')):
        with client.websocket_connect("/stream") as socket:
            socket.send_text(text)
            send_second(socket, voice(1), 0)
            assert reason in listen(socket, 1.0)[0]["error"]


# Given features


def make_rows(seconds: float, hz: float = 2.0) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(round(seconds * hz), 3)).astype(np.float32)


def test_given_features_are_sent_measured_and_predicted(faces: TestClient) -> None:
    rows = make_rows(10)
    body = {"face": {"values": rows.tolist(), "hz": 2}}
    timed = {"face": {"values": rows.tolist(), "time_s": ((np.arange(20) + 0.5) / 2).tolist()}}
    measured = measure(faces, body | voice(1).tree("audio"), body)
    assert measured["measured_windows"] == {"audio": 2, "face": 4} and measured["not_measured"] == {"audio": "not sent"}
    answers = [faces.post("/predict", json=each | {"subject": measured["subject"]}) for each in (body, timed)]
    tree = answers[0].json()
    assert tree["used"] == ["face"] and len(tree["windows"]) == 2 and answers[1].json() == tree
    form = {"face": json.dumps(body["face"]), "subject": json.dumps(measured["subject"])}
    assert (
        faces.post("/predict", files={"face": form["face"].encode()}, data={"subject": form["subject"]}).json() == tree
    )


def test_a_row_of_a_whole_recording_is_in_all_of_its_windows(faces: TestClient) -> None:
    body = {"face": {"values": [0.1, None, 2]}} | voice(1).tree("audio")
    alone = faces.post("/predict", json=body | {"subject": measure(faces, body)["subject"]}).json()
    assert alone["used"] == ["audio"] and "are all alike" in alone["not_used"]["face"]
    measured = measure(faces, body, {"face": {"values": [0.3, 4, 5]}} | voice(2).tree("audio"))
    tree = faces.post("/predict", json=body | {"subject": measured["subject"]}).json()
    assert [w["used"] for w in tree["windows"]] == [["audio", "face"]] * 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2, 3], "is no object"),
        ({"values": [1, 2]}, "3 features"),
        ({"values": [[1, 2, 3]] * 4}, "does not say when"),
        ({"values": [["a", 2, 3]]}, "must be numbers"),
        ({"values": [[1, 2], [1, 2, 3]]}, "must be numbers"),
        ({"values": [[1, 2, 3]] * 2, "time_s": [2, 1]}, "ascending"),
        ({"values": [[1, 2, 3]] * 2, "time_s": [1]}, "ascending"),
        ({"values": [1, 2, 3], "hz": -1}, "hz is -1"),
        ({"values": [1, 2, 3], "rate": 1}, 'the key "rate"'),
        ({}, "3 features"),
        ({"values": [[[1]]]}, "3 features"),
        ({"values": [[1, 2, 3], [2, 3, 4]], "time_s": [0, 20000]}, "up to second 20000"),
        ({"values": [[1, 2, 3], [2, 3, 4]], "time_s": [0, 1.7e9]}, "at most 120 s"),
        ({"values": [[1, 2, 3]] * 4, "hz": 0.001}, "at most 120 s"),
        ({"values": [[1, 2, 3]] * 2, "time_s": [-5, -1]}, "no number of it is known"),
        ({"values": [[None] * 3] * 20, "hz": 2}, "no number of it is known"),
        ({"values": [[]] * 1_000_000}, "send fewer"),
    ],
)
def test_features_that_cannot_be_used_say_why(faces: TestClient, value: Any, reason: str) -> None:
    done = faces.post("/measure", json={"face": value})
    assert done.status_code == 422, done.text
    assert reason in done.json()["not_used"]["face"] and "/tmp" not in done.text


def test_nothing_is_predicted_of_what_is_not_known(faces: TestClient) -> None:
    rows = {"face": {"values": make_rows(10).tolist(), "hz": 2}}
    subject = {"subject": measure(faces, rows)["subject"]}
    unknown = {"face": {"values": [[None] * 3] * 20, "hz": 2}}
    done = faces.post("/predict", json=unknown | subject)
    assert done.status_code == 422 and "no number of it is known" in done.json()["error"]
    gap = {"face": {"values": [[1, 2, 3], [2, 3, 4]], "time_s": [0, 22]}}
    tree = faces.post("/predict", json=gap | subject).json()
    assert [w["start_s"] for w in tree["windows"]] == [0] and tree["predicted"]  # the last is covered by less than half


def test_given_features_are_streamed(faces: TestClient) -> None:
    rows = make_rows(10)
    body = {"face": {"values": rows.tolist(), "hz": 2}}
    measured = measure(faces, body, body)
    with faces.websocket_connect("/stream") as socket:
        socket.send_text(json.dumps({"subject": measured["subject"]}))
        for k, row in enumerate(rows[:11]):
            socket.send_bytes(encode_message(row.astype("<f4").tobytes(), modality="face", time=k / 2))
        answer = listen(socket, 5.0)[-1]
        assert answer["used"] == ["face"] and answer["subject"]["face"]["state"] == "growing"
        socket.send_bytes(encode_message(b"\0" * 8, modality="face", time=5.6))
        socket.send_bytes(encode_message(rows[0].tobytes(), modality="face", time=6.1))
        assert "2 features; the model wants 3" in listen(socket, 6.0)[-1]["error"]
