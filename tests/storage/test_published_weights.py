"""Published weights are fetched once, with their hashes, and found without a network."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from eav_ray.config import Experiment, override
from eav_ray.config.paths import resolve_experiment_paths
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.pretrained import read_weights
from eav_ray.pipelines.train.workload import list_licence_warnings
from eav_ray.storage.published_weights import PublishedWeights, list_weights, read_weights_index

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAME = "lab/speech"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as fetching a model asks for."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        headers: dict[str, str] = {}
        if path in (f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/{REVISION}"):
            siblings = [{"rfilename": name} for name in self.files]
            model = {"_id": "1", "id": NAME, "sha": REVISION, "siblings": siblings}
            body = json.dumps(model | {"cardData": {"license": "cc-by-nc-4.0"}}).encode()
        elif path == f"/api/models/{NAME}/tree/{REVISION}":
            tree = [{"type": "file", "oid": "0", "path": n, "size": len(data)} for n, data in self.files.items()]
            body = json.dumps(tree).encode()
        elif path.startswith(start := f"/{NAME}/resolve/{REVISION}/") and path.removeprefix(start) in self.files:
            body = self.files[path.removeprefix(start)]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": REVISION}
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve a hub of one model; yields its address, and what it was asked for."""
    asked: list[str] = []
    hub = type("OneModel", (Hub,), {"files": files, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def run_eav(address: str, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", "from eav_ray.cli.main import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def files() -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "wav2vec2"}',
        "model.safetensors": safetensors.torch.save({"a": torch.arange(3.0)}),
        "pytorch_model.bin": b"a pickle",
        "weights.json": b"the repository's own",
        "modeling_speech.py": b"raise SystemExit",
        "onnx/config.json": b"{}",
        "LICENSE.txt": b"Share alike",
    }


def test_what_is_fetched_is_tensors_settings_and_licence_with_their_hashes(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    with serve_hub(files) as (address, asked):
        done = run_eav(address, "weights", "fetch", NAME, "--to", str(tmp_path))
    assert done.returncode == 0 and "error" not in done.stderr  # a bar of progress alone
    line = f"{NAME} at {REVISION[:12]}: 3 files, 0.0 MB, licence cc-by-nc-4.0: NOT FOR COMMERCIAL USE"
    assert done.stdout.splitlines()[0] == line
    kept = {"config.json", "model.safetensors", "LICENSE.txt"}
    assert {path.name for path in (tmp_path / NAME).rglob("*")} == kept | {"weights.json"}
    assert not any(name.endswith((".bin", ".py")) for name in asked)
    weights = read_weights_index(tmp_path / NAME)
    assert weights is not None and weights.revision == REVISION
    assert weights.files == {name: hashlib.sha256(files[name]).hexdigest() for name in kept}
    listed = run_eav("http://127.0.0.1:9", "weights", "list", "--to", str(tmp_path))
    assert listed.stdout.splitlines() == [line]

    found = override(
        Experiment(),
        {"data.modalities": ["audio"], "model.audio.weights": NAME, "store.weights": str(tmp_path)},
    )
    found = resolve_experiment_paths(found)
    path = getattr(found.model["audio"], "weights", "")
    assert path == str(tmp_path / NAME)
    assert list_licence_warnings(found) == [
        f"audio starts from {NAME}, which is licensed cc-by-nc-4.0: not for commercial use"
    ]
    state, settings = read_weights(path, "model.audio.weights")
    assert torch.equal(state["a"], torch.arange(3.0)) and settings == {"model_type": "wav2vec2"}


def test_a_file_that_is_not_what_was_fetched_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with serve_hub(files) as (address, _):
        assert run_eav(address, "weights", "fetch", NAME, "--to", str(tmp_path)).returncode == 0
        (tmp_path / NAME / "model.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(3)}))
        message = "model.safetensors is not what was fetched of lab/speech; fetch it again"
        with pytest.raises(ConfigError, match=message):
            read_weights(str(tmp_path / NAME), "model.audio.weights")
        with pytest.raises(ConfigError, match=message):
            list(list_weights(tmp_path))
        assert run_eav(address, "weights", "fetch", NAME, "--to", str(tmp_path)).returncode == 0
        assert torch.equal(read_weights(str(tmp_path / NAME), "model.audio.weights")[0]["a"], torch.arange(3.0))
        (tmp_path / NAME / "config.json").write_text('{"model_type": "hubert"}')
        with pytest.raises(ConfigError, match="config.json is not what was fetched of lab/speech; fetch it again"):
            read_weights(str(tmp_path / NAME), "model.audio.weights")


def test_a_folder_that_was_not_fetched_is_never_replaced(tmp_path: Path, files: dict[str, bytes]) -> None:
    own = tmp_path / NAME / "mine.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"weeks of training")
    with serve_hub(files) as (address, asked):
        done = run_eav(address, "weights", "fetch", NAME, "--to", str(tmp_path))
    assert done.returncode == 2 and f"{tmp_path / NAME} was not made by `eav weights fetch`" in done.stderr
    assert own.read_bytes() == b"weeks of training" and asked == []


@pytest.mark.parametrize(
    ("licence", "is_non_commercial"),
    [
        ("cc-by-nc-sa-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("cc-by-non-commercial", True),
        ("other cc-by-nc-4.0", True),
        ("apache-2.0", False),
        ("", False),
    ],
)
def test_licences_that_forbid_commercial_use_are_known(licence: str, is_non_commercial: bool) -> None:
    assert PublishedWeights(NAME, REVISION, licence, {}, 0).is_non_commercial == is_non_commercial


def test_what_cannot_be_fetched_is_a_line_and_leaves_nothing(tmp_path: Path, files: dict[str, bytes]) -> None:
    files.pop("model.safetensors")
    with serve_hub(files) as (address, _):
        for name, message in ((NAME, "has no .safetensors file on the hub"), ("lab/none", "cannot fetch lab/none: ")):
            done = run_eav(address, "weights", "fetch", name, "--to", str(tmp_path))
            assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    done = run_eav("http://127.0.0.1:9", "weights", "fetch", NAME, "--to", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "cannot fetch lab/speech" in done.stderr
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("words", [[], ["get", NAME], ["fetch"], ["list", NAME]])
def test_other_words_are_refused(words: list[str]) -> None:
    done = run_eav("http://127.0.0.1:9", "weights", *words)
    assert done.returncode == 2 and "write `eav weights fetch NAME`" in done.stderr


def test_weights_that_were_not_fetched_are_named_before_anything_starts(tmp_path: Path) -> None:
    e = override(Experiment(), {"model.audio.weights": NAME, "store.weights": str(tmp_path)})
    message = f"which is no file or folder here and was not fetched into {tmp_path} .store.weights.; where there is a "
    with pytest.raises(ConfigError, match=message + f"network, run `eav weights fetch {NAME} --to {tmp_path}`"):
        resolve_experiment_paths(e)
    resolve_experiment_paths(e, ("shards",))  # preprocessing needs none
    resolve_experiment_paths(override(e, {"data.modalities": ["eeg"]}))
