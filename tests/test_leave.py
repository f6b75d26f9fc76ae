"""Row R31: whoever ends a training, by whatever file that is shipped, gives it the time that its saves take."""

import re
from typing import Any

import pytest

from eav_ray.distributed.worker_groups import LEAVE_S
from tests.helpers.infra import CLUSTER, DOCKERFILE, PODS
from tests.helpers.paths import REPOSITORY

SAVE_S = 2e9 / 50e6  # 2 GB at 50 MB/s
MARGIN_S = 30.0  # for Ray to end, once the training has left
JOB, NODE = "RAY_JOB_STOP_WAIT_TIME_S", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
START = [command for side in ("head", "worker") for command in CLUSTER[f"{side}_start_ray_commands"][1:]]


def read(name: str) -> str:
    return (REPOSITORY / "infra" / name).read_text()


def test_there_is_time_for_a_save_that_has_begun_and_for_the_last_one() -> None:
    assert LEAVE_S >= 1.25 * 2 * SAVE_S


@pytest.mark.parametrize(
    ("text", "names"),
    {
        " ".join(CLUSTER["docker"]["run_options"]): (JOB, NODE),
        START[0]: (JOB, NODE),
        START[1]: (JOB, NODE),
        "\n".join(DOCKERFILE): (JOB, NODE),
        read("apptainer.def"): (JOB, NODE),
    }.items(),
    ids=["container", "head", "worker", "Dockerfile", "Apptainer"],
)
def test_a_file_gives_jobs_and_nodes_that_time(text: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert [float(value) for value in re.findall(rf"\b{name}=(\d+)", text)] == [LEAVE_S]


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_killed_later_than_ray_ends_its_node(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert float(variables[NODE]) == LEAVE_S
    assert float(variables.get(JOB, LEAVE_S)) == LEAVE_S
    assert pod["terminationGracePeriodSeconds"] >= LEAVE_S + MARGIN_S


def test_slurm_says_early_enough_that_the_time_is_over() -> None:
    (seconds,) = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)$", read("slurm.sbatch"), flags=re.MULTILINE)
    assert float(seconds) >= LEAVE_S + MARGIN_S


def test_the_guide_names_that_time() -> None:
    assert f"**{LEAVE_S:.0f} s**" in read("README.md")
