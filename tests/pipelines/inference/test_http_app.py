"""What a server answers: a prediction, or one line of JSON that says why there is none; never a 500.

The whole ASGI app without Ray, with a model that nobody trained.
"""

import asyncio
import base64
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from eav_ray.data.datasets.eav import EAV_CHANNELS, EAV_CLASSES
from eav_ray.data.streaming.upload import make_windows, parse_upload
from eav_ray.errors import ConfigError
from eav_ray.evaluation.window_predictor import build_prediction_trees
from eav_ray.pipelines.inference import auth
from eav_ray.pipelines.inference.auth import hash_token
from eav_ray.pipelines.inference.http_app import Limits, PredictionService, make_app
from tests.helpers.serving import Sent, draw_jpeg, encode_audio, encode_message, make_predictor

SENT = Sent(5)
LIMITS = Limits(max_body_bytes=2_000_000, max_streams=2, idle_timeout_s=0.6, max_unusable_messages=5)
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(make_app(make_predictor(), "tiny", limits=LIMITS)) as made:
        yield made


def by_hand(tree: dict[str, Any]) -> list[dict[str, Any]]:
    p = make_predictor()
    made, _ = make_windows(parse_upload(tree), p.inputs)
    return build_prediction_trees(p.predict_windows(made.windows), p.classes)


def test_health_says_what_is_served(client: TestClient) -> None:
    tree = client.get("/health").json()
    assert tree["ok"] and tree["checkpoint"] == "tiny" and tree["classes"] == list(EAV_CLASSES)
    assert tree["eeg_channels"] == list(EAV_CHANNELS) and tree["uptime_s"] >= 0


def test_a_recording_is_predicted_with_all_that_was_sent(client: TestClient) -> None:
    done = client.post("/predict", json=SENT.tree())
    tree = done.json()
    assert done.status_code == 200 and tree["not_used"] == {} and sorted(tree["used"]) == ["audio", "eeg", "video"]
    assert all(
        sum(tree[key].values()) == pytest.approx(1, abs=3e-4)
        for key in ("probabilities", "weights", "corrected_weights")
    )
    assert tree["predicted"] == max(tree["probabilities"], key=tree["probabilities"].get)
    (window,) = tree["windows"]
    (wanted,) = by_hand(SENT.tree())
    assert window["probabilities"] == pytest.approx(wanted["probabilities"], abs=5.1e-5)
    shares = [*window["probabilities"].values(), *window["weights"].values(), *window["by_modality"]["eeg"].values()]
    assert all(share == round(share, 4) for share in (*shares, *tree["corrected_weights"].values()))


def test_a_form_says_the_same_as_json(client: TestClient) -> None:
    whole = client.post("/predict", json=SENT.tree("eeg", "audio")).json()
    eeg = json.dumps(SENT.tree("eeg")["eeg"])
    for files, data in (({"audio": SENT.wav, "eeg": eeg.encode()}, {}), ({"audio": SENT.wav}, {"eeg": eeg})):
        assert client.post("/predict", files=files, data=data).json() == whole


@pytest.mark.parametrize("m", ["audio", "eeg", "video"])
def test_one_modality_is_enough_and_the_others_weigh_nothing(client: TestClient, m: str) -> None:
    tree = client.post("/predict", json=SENT.tree(m)).json()
    assert tree["used"] == [m] and tree["weights"][m] == pytest.approx(1)
    assert {k for k, v in tree["not_used"].items() if v == "not sent"} == {"audio", "eeg", "video"} - {m}
    assert all(tree["weights"][k] == 0 for k in tree["not_used"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def wav(x: np.ndarray, hz: int = 16_000, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, x, hz, format=kind, subtype=subtype)
    return sink.getvalue()


def eeg(**changes: Any) -> dict[str, Any]:
    return SENT.tree("eeg")["eeg"] | changes


PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
DAMAGED = {
    "no wav": {"audio": b64(b"RIFF" + bytes(100))},
    "half a wav": {"audio": b64(SENT.wav[: len(SENT.wav) // 2])},
    "NaN in a wav": {"audio": b64(wav(np.full(16_000, np.nan)))},
    "an empty wav": {"audio": b64(wav(np.zeros(0)))},
    "a wav of 1 Hz": {"audio": b64(wav(np.zeros(100), 1))},
    "an hour in a small file": {"audio": b64(wav(np.zeros(8000 * 3600), 8000, "FLAC", "PCM_16"))},
    "a playlist as audio": {"audio": b64(PLAYLIST)},
    "a playlist as video": {"video": b64(PLAYLIST)},
    "a playlist behind a film's name": {"video": b64(b"\x00\x00\x00\x18ftyp" + PLAYLIST)},
    "a list of films": {"video": b64(b"ffconcat version 1.0\nfile /etc/passwd\n")},
    "no film": {"video": b64(b"\x00\x00\x00\x18ftypmp42" + bytes(500))},
    "not base64": {"audio": "***"},
    "audio is a number": {"audio": 5},
    "audio is null": {"audio": None},
    "no frames": {"video": {"hz": 5, "frames": []}},
    "frames of no rate": {"video": {"frames": [b64(SENT.frames[0])]}},
    "frames that are none": {"video": {"hz": 5, "frames": ["AAAA", 3]}},
    "an hour of frames": {"video": {"hz": 0.1, "frames": [b64(SENT.frames[0])] * 13}},
    "a frame that is a bomb": {"video": {"hz": 1, "frames": [b64(draw_jpeg(np.random.default_rng(0), (8, 5000)))]}},
    "EEG is a list": {"eeg": [1, 2]},
    "EEG without a rate": {"eeg": {"values": [[1.0] * 900] * 30}},
    "a rate of 0": {"eeg": eeg(hz=0)},
    "a rate of odd thousandths": {"eeg": eeg(hz=99_999.999)},
    "a rate of 20 Hz": {"eeg": eeg(hz=20)},
    "a rate of text": {"eeg": eeg(hz="fast")},
    "29 channels": {"eeg": eeg(channels=29, values=[[1.0] * 900] * 29)},
    "31 names": {"eeg": eeg(channels=[*EAV_CHANNELS, "x"])},
    "names of others": {"eeg": eeg(channels=[f"x{i}" for i in range(30)])},
    "names are numbers": {"eeg": eeg(channels=list(range(30)))},
    "ragged EEG": {"eeg": eeg(values=[[1.0] * (900 + i) for i in range(30)])},
    "deep EEG": {"eeg": eeg(values=[[[1.0]] * 900] * 30)},
    "EEG of text": {"eeg": eeg(values=[["a"] * 900] * 30)},
    "EEG of objects": {"eeg": eeg(values=[[{}] * 9] * 30)},
    "huge whole numbers": {"eeg": eeg(values=[[10**400] * 20] * 30)},
    "an empty EEG": {"eeg": eeg(values=[[]] * 30)},
    "EEG of half a second": {"eeg": eeg(values=[[1.0, 2.0] * 100] * 30)},
    "EEG that is flat": {"eeg": eeg(values=[[7.0] * 900] * 30)},
    "EEG beyond floats": {
        "eeg": eeg(values=np.where(np.arange(2500) % 2, 1e308, -1e308).repeat(30).reshape(30, -1).tolist())
    },
    "EEG of huge numbers": {"eeg": eeg(values=np.random.default_rng(0).normal(0, 1e38, (30, 900)).tolist())},
    "a unit that is none": {"eeg": eeg(unit="parsec")},
    "a unit that is a list": {"eeg": eeg(unit=["volt"])},
    "a rate that makes an hour": {"eeg": eeg(hz=2.0)},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_set_aside_with_its_reason(client: TestClient, what: str) -> None:
    """Alone it leaves nothing to predict; beside another modality that one is used."""
    (m,) = DAMAGED[what]
    other = "audio" if m != "audio" else "video"
    alone = client.post("/predict", content=json.dumps(DAMAGED[what]))
    assert alone.status_code == 422, alone.text
    assert "nothing in this request can be used" in one_line(alone)
    answer = client.post("/predict", content=json.dumps(DAMAGED[what] | SENT.tree(other)))
    tree = answer.json()
    assert answer.status_code == 200 and tree["used"] == [other] and tree["predicted"] in EAV_CLASSES
    assert "\n" not in tree["not_used"][m] and "/tmp" not in tree["not_used"][m], tree["not_used"]


def one_line(done: Any) -> str:
    assert 400 <= done.status_code < 500 and done.headers["content-type"] == "application/json"
    assert done.text.count("\n") == 1 and list(done.json())[0] == "error"
    return done.json()["error"]


BAD = {
    "nothing": b"",
    "no JSON": b"nope",
    "a list": b"[1]",
    "nested": b"[" * 100_000,
    "a huge number": b"9" * 100_000,
    "no UTF-8": b"\xff\xfe\x00",
    "an empty object": b"{}",
    "half a character": b'{"\\ud800": 1}',
    "another key": b'{"vidio": 1}',
    "too long": b" " * (LIMITS.max_body_bytes + 1),
}


@pytest.mark.parametrize("what", BAD)
def test_a_request_that_is_none_gets_a_line_of_json(client: TestClient, what: str) -> None:
    error = one_line(client.post("/predict", content=BAD[what]))
    assert what != "another key" or 'did you mean "video"?' in error


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nope",
        b"--x\r\nnope\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data; name=smell\r\n\r\n1\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: form-data; name=eeg\r\n\r\nnope\r\n--x--\r\n",
        b"--x\r\nContent-Disposition: form-data; name=eeg\r\n\r\n{}\r\n--x\r\n"
        b"Content-Disposition: form-data; name=eeg\r\n\r\n{}\r\n--x--\r\n",
        b"--x\r\n" + b"A: b\r\n" * 5000,
        b"--x\r\nContent-Disposition: form-data; name=audio\r\n\r\nRIFF",
    ],
)
def test_a_form_that_is_none_gets_a_line_of_json(client: TestClient, content: bytes) -> None:
    for kind in (
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "multipart/mixed; boundary=\xff".encode("latin1"),
    ):
        one_line(client.post("/predict", content=content, headers={"content-type": kind}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("what", [b'"eeg":{"hz":', b'"video":{"hz":', b'"eeg":{"hz":5,"unit":'])
def test_what_is_nested_as_deeply_as_can_just_be_read_gets_no_500(client: TestClient, what: bytes) -> None:
    """To write it into the reason takes more of the stack than to read it."""
    for depth in range(960, 1000):
        one_line(client.post("/predict", content=b"{" + what + b"[" * depth + b"]" * depth + b"}}"))


PARTS = st.sampled_from(["eeg", "audio", "video", "values", "hz", "channels", "unit", "frames"])


@given(st.dictionaries(PARTS, st.dictionaries(PARTS, JSON, max_size=4) | JSON, max_size=3))
def test_no_tree_of_json_gets_a_500(client: TestClient, tree: Any) -> None:
    one_line(client.post("/predict", content=json.dumps(tree)))


def test_other_paths_and_methods_say_what_there_is(client: TestClient) -> None:
    for done in (client.get("/nope"), client.get("/predict"), client.post("/health"), client.get("/stream")):
        assert "POST /predict" in one_line(done)


def test_too_many_requests_are_told_to_come_again() -> None:
    with TestClient(make_app(make_predictor(), "tiny", limits=Limits(max_requests=0))) as client:
        done = client.post("/predict", json=SENT.tree("audio"))
        assert done.status_code == 503 and "try again" in done.json()["error"]


def test_work_that_nobody_waits_for_any_more_counts_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that come and go pile up no bodies."""
    service, go, answered = PredictionService(make_predictor(), "tiny", Limits()), threading.Event(), []

    def slow(body: bytes) -> dict[str, Any]:
        go.wait(10)
        answered.append(body)
        return {}

    monkeypatch.setattr(service, "predict_body", slow)

    async def asked(body: bytes) -> Any:
        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        return await service.predict(Request({"type": "http", "method": "POST", "headers": []}, receive))

    async def all_of_it() -> None:
        tasks = [asyncio.create_task(asked(body)) for body in (b"runs", b"waits", b"stays")]
        await asyncio.sleep(0.05)
        assert service.n_requests == 3
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0.05)
        assert service.n_requests == 2  # the one that is computed, and the one that still wants its answer
        go.set()
        assert (await tasks[2]).status_code == 200
        await asyncio.sleep(0.05)
        assert service.n_requests == 0 and answered == [b"runs", b"stays"]

    asyncio.run(all_of_it())


# Streams


def until(socket: Any, wanted: float) -> dict[str, Any]:
    for _ in range(50):
        tree = json.loads(socket.receive_text())
        if "waiting" not in tree and tree["time"] >= wanted:
            return tree
    raise AssertionError(f"no answer at {wanted}")


def test_a_stream_is_answered_as_the_recording_is(client: TestClient) -> None:
    with client.websocket_connect("/stream") as socket:
        for _, data in SENT.messages():
            socket.send_bytes(data)
        tree = until(socket, 105.0)
    (wanted,) = by_hand(SENT.tree())
    assert tree["not_used"] == {} and tree["start"] == 100.0 and tree["refused"] == 0
    assert tree["probabilities"] == pytest.approx(wanted["probabilities"], abs=6e-5)
    assert tree["weights"] == pytest.approx(wanted["weights"], abs=6e-5)


def test_a_stream_that_says_nothing_usable_is_told_so_and_goes_on(client: TestClient) -> None:
    with client.websocket_connect("/stream") as socket:
        socket.send_text("hello")
        socket.send_bytes(b"nope\n")
        socket.send_bytes(encode_audio(0.0, np.zeros(16_000)))
        tree = until(socket, 1.0)
        assert tree["predicted"] is None and tree["probabilities"] is None and tree["used"] == []
        assert tree["refused"] == 1 and "not JSON" in tree["error"]
        for k in range(1, 5):
            socket.send_bytes(encode_audio(float(k), np.random.default_rng(k).normal(0, 900, 16_000)))
        assert until(socket, 5.0)["used"] == ["audio"]


def test_a_stream_of_rubbish_and_one_of_nothing_end(client: TestClient) -> None:
    for count, reason in ((LIMITS.max_unusable_messages, "in a row"), (0, "nothing came")):
        began = time.monotonic()
        with client.websocket_connect("/stream") as socket, pytest.raises(WebSocketDisconnect) as reported:
            for _ in range(count):
                socket.send_bytes(encode_message(b"", modality="smell"))
            while True:
                socket.receive_text()
        assert reported.value.code == 1008 and reason in reported.value.reason and time.monotonic() - began < 10


def test_no_more_streams_than_there_is_room_for(client: TestClient) -> None:
    with client.websocket_connect("/stream"), client.websocket_connect("/stream"):
        with client.websocket_connect("/stream") as third, pytest.raises(WebSocketDisconnect) as reported:
            third.receive_text()
        assert reported.value.code == 1013
    with client.websocket_connect("/stream") as again:
        again.send_bytes(encode_audio(0.0, np.zeros(16_000)))
        assert until(again, 1.0)["used"] == []


# Token


@pytest.mark.parametrize("given_", ["", "Bearer", "Bearer nope", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"])
def test_without_the_token_there_is_a_401_for_everything(given_: str) -> None:
    with TestClient(make_app(make_predictor(), "tiny", hash_token(TOKEN))) as client:
        headers = {"authorization": given_.encode("latin1")} if given_ else {}
        for method, path in (("GET", "/health"), ("POST", "/predict"), ("GET", "/nope")):
            done = client.request(method, path, headers=headers)
            assert done.status_code == 401 and "Authorization: Bearer" in one_line(done)
        with pytest.raises(Exception) as refused, client.websocket_connect("/stream", headers=headers):  # noqa: B017
            pass
        assert getattr(refused.value, "status_code", 0) == 401


def test_with_the_token_all_is_answered() -> None:
    with TestClient(make_app(make_predictor(), "tiny", hash_token(TOKEN))) as client:
        headers = {"authorization": f"bearer {TOKEN}"}
        assert client.get("/health", headers=headers).status_code == 200
        with client.websocket_connect("/stream", headers=headers) as socket:
            socket.send_bytes(encode_audio(0.0, np.zeros(16_000)))
            until(socket, 1.0)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org", ""])
def test_beyond_loopback_a_token_is_wanted(host: str) -> None:
    with pytest.raises(ConfigError, match="there is no token"):
        auth.require_token(host, "")
    auth.require_token(host, TOKEN)
    auth.require_token("127.0.0.1", "")


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(auth.TOKEN_VARIABLE, raising=False)
    assert auth.read_token("") == ""
    monkeypatch.setenv(auth.TOKEN_VARIABLE, TOKEN)
    assert auth.read_token("") == TOKEN and auth.TOKEN_VARIABLE not in os.environ
    file = tmp_path / "token"
    file.write_text("another-token-of-16\n")
    assert auth.read_token(str(file)) == "another-token-of-16"
    for text in ("", "short", "with a space in it.", "ü" * 20):
        file.write_text(text)
        with pytest.raises(ConfigError, match="openssl rand"):
            auth.read_token(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        auth.read_token(str(tmp_path / "none"))
