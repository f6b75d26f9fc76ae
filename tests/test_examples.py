"""What lies in `examples/` runs, and says what it is said to say."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mne
import numpy as np
import pytest
import uvicorn

from eav_ray.data.datasets.eav import EAV_CHANNELS, EAV_CLASSES
from eav_ray.pipelines.inference.auth import hash_token
from eav_ray.pipelines.inference.http_app import make_app
from tests.helpers.films import make_frames, write_media
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import EEG_HZ, Sent, make_predictor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the websockets that uvicorn takes
EXAMPLES, TOKEN = REPOSITORY / "examples", "a-token-of-some-length"


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The app without Ray, behind a token; its port."""
    running = uvicorn.Server(uvicorn.Config(make_app(make_predictor(), "tiny", hash_token(TOKEN)), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(running.serve([listener]),))
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A recording of 6 s in files."""
    folder, sent = tmp_path_factory.mktemp("recording"), Sent(6.0)
    (folder / "a.wav").write_bytes(sent.wav)
    info = mne.create_info(list(EAV_CHANNELS), EEG_HZ, "eeg", verbose="ERROR")
    mne.io.RawArray(1e-6 * sent.eeg_CT.astype(np.float64), info, verbose="ERROR").save(folder / "e_raw.fif")
    frames = [np.full((48, 64, 3), 40 * (k % 6), np.uint8) for k in range(60)]
    write_media(folder / "v.mp4", make_frames(frames, np.arange(60) / 10), video_codec="mpeg4")
    return {"--audio": str(folder / "a.wav"), "--eeg": str(folder / "e_raw.fif"), "--video": str(folder / "v.mp4")}


def run_client(server: int, *words: str, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLES / "stream_client.py"), f"ws://127.0.0.1:{server}/stream", *words]
    environment = os.environ | {"EAV_RAY_SERVE_TOKEN": token}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_client_of_streams_prints_an_answer_each_second(server: int, files: dict[str, str]) -> None:
    done = run_client(server, *(word for pair in files.items() for word in pair), "--speed", "2")
    assert done.returncode == 0 and not done.stderr, done.stderr
    answers = re.findall(r"^ +([\d.]+) s  (\w+) ([\d.]+) by (.+)$", done.stdout, re.MULTILINE)
    assert float(answers[-1][0]) >= 5.0 and "refused" not in done.stdout, done.stdout
    assert all(name in EAV_CLASSES and 0 <= float(share) <= 1 for _, name, share, _ in answers)
    assert answers[-1][3] == "audio, eeg, video"


def test_the_client_of_streams_wants_a_file_and_the_token(server: int, files: dict[str, str]) -> None:
    assert "give a file" in run_client(server).stderr
    refused = run_client(server, "--audio", files["--audio"], token="another")
    assert refused.returncode and "401" in refused.stderr


def test_no_example_names_this_machine() -> None:
    for path in sorted(EXAMPLES.rglob("*")):
        if path.is_file():
            assert not re.search(r"/(tmp|home|work|root|Users)/", path.read_text()), path


def test_the_guides_name_each_example() -> None:
    guides = "".join(path.read_text() for path in [REPOSITORY / "README.md", *Path(REPOSITORY, "docs").glob("*.md")])
    assert all(f"examples/{path.name}" in guides for path in EXAMPLES.glob("*") if path.suffix in (".py", ".ipynb"))
