"""What is shipped to a cluster is what was tested here: a launcher file Ray accepts, that cannot run open or without
limit, and an image made of files that exist and of versions that are pinned."""

import copy
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray._private.authentication.authentication_token_setup import _get_default_token_path
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.helpers.infra import CLUSTER, CONSTRAINTS, DOCKERFILE, PINS, PYPROJECT, WORKERS
from tests.helpers.paths import REPOSITORY

EXTRAS = {name: d for name, d in PYPROJECT["optional-dependencies"].items() if name != "all"}
DEPENDENCIES = [*PYPROJECT["dependencies"], *(d for extra in EXTRAS.values() for d in extra)]
GPU_WORKERS = {name: node for name, node in WORKERS.items() if node["resources"].get("GPU", 0) > 0}


@pytest.fixture
def prepared() -> dict:
    """The configuration that the launcher works with: Ray's defaults for AWS, overridden by ours."""
    return prepare_config(copy.deepcopy(CLUSTER))


def start_commands(config: dict, side: str) -> list[str]:
    return [command for command in config[f"{side}_start_ray_commands"] if "ray start" in command]


def shipped_files() -> list[str]:
    """Tracked, or new and not ignored: what a commit, and so the image, can hold."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if (REPOSITORY / name).is_file()]


# cluster.yaml


def test_ray_accepts_the_cluster_file(prepared):
    validate_config(prepared)


def test_ray_would_refuse_a_misspelt_key(prepared):
    prepared["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepared)


def test_no_node_type_may_exceed_the_global_limit():
    for name, node in CLUSTER["available_node_types"].items():
        assert node["min_workers"] <= node["max_workers"] <= CLUSTER["max_workers"], name


def test_the_global_limit_is_the_sum_of_the_types_limits():
    assert CLUSTER["max_workers"] == sum(node["max_workers"] for node in WORKERS.values())


def test_no_worker_runs_while_there_is_no_work():
    assert CLUSTER["idle_timeout_minutes"] > 0
    assert all(node["min_workers"] == 0 for node in WORKERS.values())


def test_there_are_gpu_workers_and_all_are_spot():
    assert GPU_WORKERS
    for name, node in GPU_WORKERS.items():
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot", name


def test_the_head_is_on_demand_and_takes_no_work_that_asks_for_a_cpu():
    head = CLUSTER["available_node_types"][CLUSTER["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    assert head["max_workers"] == 0


def test_workers_may_reach_the_bucket():
    assert all("IamInstanceProfile" in node["node_config"] for node in WORKERS.values())


@pytest.mark.parametrize("side", ["head", "worker"])
def test_every_node_starts_with_the_token_required_and_statistics_off(prepared, side):
    commands = start_commands(prepared, side)
    assert len(commands) == 1
    before = commands[0].split("ray start")[0]
    assert re.search(r"\bexport [^;]*\bRAY_AUTH_MODE=token\b", before)
    assert re.search(r"\bexport [^;]*\bRAY_USAGE_STATS_ENABLED=0\b", before)


def test_every_shell_in_a_container_has_the_token_required():
    assert "-e RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    assert "-e RAY_USAGE_STATS_ENABLED=0" in CLUSTER["docker"]["run_options"]


def test_the_token_is_handed_over_as_the_file_that_ray_reads():
    default = "~/" + _get_default_token_path().relative_to(Path.home()).as_posix()
    assert CLUSTER["file_mounts"] == {default: default}


@pytest.mark.parametrize("name", ["cluster.yaml", "infra/Dockerfile", "infra/README.md"])
def test_no_shipped_file_holds_a_token_or_switches_it_off(name):
    text = (REPOSITORY / name).read_text()
    assert not re.search(r"\bRAY_AUTH_TOKEN=", text)
    assert set(re.findall(r"\bRAY_AUTH_MODE=(\w+)", text)) == {"token"}


def test_the_dashboard_listens_on_the_head_only(prepared):
    # The prepared file, because Ray's own default for AWS is 0.0.0.0.
    assert re.findall(r"--dashboard-host[= ](\S+)", " ".join(start_commands(prepared, "head"))) == ["127.0.0.1"]
    assert not re.search(r"--dashboard-host|0\.0\.0\.0", " ".join(start_commands(prepared, "worker")))
    assert "0.0.0.0" not in yaml.safe_dump(prepared)


def test_nodes_install_nothing_when_they_start(prepared):
    # Again the prepared file: Ray's defaults install ray and boto3.
    for key, commands in prepared.items():
        if key.endswith("_commands"):
            assert not any("install" in command for command in commands), key


# infra/Dockerfile


def test_the_cluster_runs_the_image_of_this_version():
    image = CLUSTER["docker"]["image"]
    assert image.endswith(f"/{PYPROJECT['name']}:{PYPROJECT['version']}")
    assert f"-t {image} " in (REPOSITORY / "infra/Dockerfile").read_text()
    assert f"-t {image} " in (REPOSITORY / "infra/README.md").read_text()


def test_every_source_that_the_image_copies_is_a_file_of_the_repository():
    shipped = shipped_files()
    sources = [source for line in DOCKERFILE if line.split()[0] in {"COPY", "ADD"} for source in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "eav_ray", "jobs"} <= set(sources)
    for source in sources:
        assert any(name == source or name.startswith(source.rstrip("/") + "/") for name in shipped), source


def test_the_image_installs_nothing_but_pinned_versions():
    installs = [
        command.strip()
        for line in DOCKERFILE
        for command in line.split("&&")
        if re.search(r"\bpip3? install\b", command)
    ]
    assert any(command.endswith(" '.[all]'") for command in installs)
    for command in installs:
        assert "-c constraints.txt" in command


def test_the_image_has_the_python_that_is_tested():
    (base,) = [line.split()[1] for line in DOCKERFILE if line.startswith("FROM ")]
    version = re.match(r"python:(\d+\.\d+)-slim", base)
    assert version and f">={version[1]}" == PYPROJECT["requires-python"]


def test_the_container_is_not_root_and_finds_the_mounted_token():
    text = "\n".join(DOCKERFILE)
    users = [line.split()[1] for line in DOCKERFILE if line.startswith("USER ")]
    assert users and users[-1] not in {"root", "0"}
    # The launcher mounts into the image's HOME, or into /root where the image has none.
    assert re.search(rf"\bHOME=/home/{users[-1]}\b", text)
    assert re.search(r"useradd\b.*--uid 1000\b", text)
    assert f"/home/{users[-1]}/.ray" in text


def test_the_image_has_what_the_launcher_needs_and_requires_a_token():
    text = "\n".join(DOCKERFILE)
    for word in ("rsync", "openssh-client", "NVIDIA_VISIBLE_DEVICES=all", "RAY_AUTH_MODE=token"):
        assert word in text, word


# constraints.txt


def test_constraints_hold_exact_pins_only_and_each_once():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in CONSTRAINTS)
    assert len(PINS) == len(CONSTRAINTS)


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_every_dependency_has_a_pin_that_its_floor_allows(dependency):
    requirement = Requirement(dependency)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)], prereleases=False)


def test_all_holds_every_extra_that_a_command_uses():
    (everything,) = map(Requirement, PYPROJECT["optional-dependencies"]["all"])
    assert everything.name == PYPROJECT["name"] and everything.extras == EXTRAS.keys() - {"bench", "dev"}
    assert "-e '.[dev,all]'" in (REPOSITORY / "Makefile").read_text()


@pytest.mark.parametrize(
    ("name", "too_new"),
    {"ray": "2.61", "torch": "2.16", "deepspeed": "0.20", "transformers": "6", "timm": "1.1", "optuna": "6"}.items(),
)
def test_a_package_whose_private_names_are_known_ends_before_its_next_release(name: str, too_new: str):
    specifiers = [Requirement(d).specifier for d in DEPENDENCIES if Requirement(d).name == name]
    assert specifiers and not any(specifier.contains(too_new) for specifier in specifiers)


def test_torch_and_torchvision_move_together_and_torchaudio_is_one_that_loads_beside_them():
    assert {"torch", "torchvision"} <= PINS.keys()
    (floor,) = [r.specifier for r in map(Requirement, EXTRAS["braindecode"]) if r.name == "torchaudio"]
    assert PINS["torchaudio"] in floor and "2.11.0" not in floor


@pytest.mark.parametrize("name", ["cluster.yaml", "infra/Dockerfile", "infra/README.md"])
def test_no_other_ray_than_the_pinned_one_is_named(name):
    named = re.findall(r"(?<![\w/-])ray(?:\[[\w,]*\])?(?:==|:)(\d+(?:\.\d+)+)", (REPOSITORY / name).read_text())
    assert set(named) <= {PINS["ray"]}


def test_the_image_with_weights_compares_them_with_their_hashes(tmp_path):
    """It was not built here: its command is run as it stands, on a folder as `eav weights fetch` leaves it."""
    lines = (REPOSITORY / "infra" / "weights.Dockerfile").read_text().splitlines()
    steps = [line for line in lines if line and not line.startswith("#")]
    assert steps[:2] == ["ARG BASE", "FROM ${BASE}"]
    (copied,) = [line.split()[-1] for line in steps if line.startswith("COPY ")]
    (command,) = [line.removeprefix("RUN ").split() for line in steps if line.startswith("RUN ")]
    assert command[0] == "eav" and command[-1] == copied
    assert f"store.weights={copied}" in (REPOSITORY / "infra" / "README.md").read_text()
    folder = tmp_path / "lab" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    files = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    described = {"format": 1, "name": "lab/model", "revision": "0" * 40, "licence": "mit", "files": files, "n_bytes": 2}
    (folder / "weights.json").write_text(json.dumps(described))
    run = [sys.executable, "-c", "from eav_ray.cli.main import main; main()", *command[1:-1], str(tmp_path)]
    assert subprocess.run(run, capture_output=True, check=True, text=True).stdout.startswith("lab/model at 0000")
    (folder / "config.json").write_text("[]")
    refused = subprocess.run(run, capture_output=True, text=True)
    assert refused.returncode == 2 and "is not what was fetched of lab/model" in refused.stderr
