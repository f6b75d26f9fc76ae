"""What is shipped for Kubernetes: files that the operator's own schemas take whole, of one image and one set of limits,
whose words are those that the program takes."""

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from eav_ray.config import load_experiment
from eav_ray.distributed.ray_workarounds import SERVE_CALLBACK_VARIABLE
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.inference import proxy
from tests.helpers.infra import (
    CLUSTER,
    DOCKERFILE,
    KUBERAY,
    MANIFESTS,
    PINS,
    PODS,
    SEARCH,
    SERVICE,
    WORKERS,
    list_pods,
)
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import write_checkpoint

GROUPS = {group["groupName"]: group for group in KUBERAY["workerGroupSpecs"]}
SERVE_CONFIG = yaml.safe_load(SERVICE["serveConfigV2"])


def import_builder(path: str) -> Callable[[dict[str, Any]], Any]:
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)


def close_schema(schema: Any) -> Any:
    """Refuse fields that the API server would drop without a word."""
    if isinstance(schema, list):
        return [close_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close_schema(each) for key, each in schema.items()}
    is_open = "additionalProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="session")
def validators(kuberay: Path) -> dict[str, Any]:
    """The operator's schemas by kind."""
    read = [json.loads(path.read_text()) for path in kuberay.glob("*.json")]
    return {each["kind"]: jsonschema.Draft202012Validator(close_schema(each["schema"])) for each in read}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_operator_takes_every_field(kind: str, validators: dict[str, Any]):
    resource = MANIFESTS[kind]
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", kind)
    validators[kind].validate(resource)


@pytest.mark.parametrize(
    ("kind", "where", "name"),
    [
        ("RayCluster", (), "rayVersoin"),
        ("RayCluster", ("autoscalerOptions",), "idleTimeout"),
        ("RayCluster", ("headGroupSpec", "template", "spec"), "terminationGracePeriod"),
        ("RayCluster", ("workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"), "limit"),
        ("RayJob", (), "entryPoint"),
        ("RayService", ("rayClusterConfig", "headGroupSpec", "template", "spec", "volumes", 0, "secret"), "name"),
    ],
)
def test_a_misspelt_field_is_refused(kind: str, where: tuple[Any, ...], name: str, validators: dict[str, Any]):
    resource = copy.deepcopy(MANIFESTS[kind])
    inner = resource["spec"]
    for step in where:
        inner = inner[step]
    inner[name] = "120"
    with pytest.raises(jsonschema.ValidationError, match=f"'{name}' was unexpected"):
        validators[kind].validate(resource)


def test_a_search_has_the_cluster_that_stays_for_itself():
    assert SEARCH["rayClusterSpec"] == KUBERAY


def test_kubernetes_has_the_limits_of_the_cluster_file():
    assert GROUPS.keys() == WORKERS.keys()
    for name, group in GROUPS.items():
        limits = (group["replicas"], group["minReplicas"], group["maxReplicas"])
        assert limits == (0, WORKERS[name]["min_workers"], WORKERS[name]["max_workers"])
    assert KUBERAY["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * CLUSTER["idle_timeout_minutes"]
    assert KUBERAY["enableInTreeAutoscaling"] and KUBERAY["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("name", WORKERS)
def test_a_pod_has_what_a_node_of_the_cluster_file_has(name):
    (container,) = GROUPS[name]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    wanted = WORKERS[name]["resources"]
    assert int(limits["cpu"]) == wanted["CPU"] and int(limits.get("nvidia.com/gpu", 0)) == wanted.get("GPU", 0)


def test_kubernetes_runs_the_same_ray_and_image_with_a_token():
    for cluster in (KUBERAY, SERVICE["rayClusterConfig"]):
        assert cluster["rayVersion"] == PINS["ray"] and cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == str(
            CLUSTER["available_node_types"]["head"]["resources"]["CPU"]
        )


@pytest.mark.parametrize("pod", PODS)
def test_a_pod_is_not_root_and_has_a_limit_and_no_token_in_its_environment(pod: dict[str, Any]):
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert container["image"] == CLUSTER["docker"]["image"]
    # A pod that is promised less may be removed while it works.
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
    assert not any("token" in v["name"].lower() for v in container["env"] if not v["name"].endswith("_FILE"))


def test_the_search_on_kubernetes_is_a_command_that_the_program_takes():
    python, job, experiment, *changes = SEARCH["entrypoint"].split()
    assert python == "python"
    copied = {target for _, target in (line.split()[1:] for line in DOCKERFILE if line.startswith("COPY jobs"))}
    assert copied == {"jobs"}  # beside the working folder of the image
    for path in (job, experiment):
        assert (REPOSITORY / path.removeprefix("/opt/eav-ray/")).is_file()
    e = load_experiment(
        REPOSITORY / experiment.removeprefix("/opt/eav-ray/"), dict(change.split("=", 1) for change in changes)
    )
    assert e.search.max_concurrent_trials <= GROUPS["gpu"]["maxReplicas"] and e.runtime.gpus_per_worker == 1


def test_what_is_served_on_kubernetes_is_what_the_program_builds(tmp_path: Path):
    build = import_builder(SERVE_CONFIG["applications"][0]["import_path"])
    from ray.serve.schema import ServeDeploySchema  # after our own import of Ray Serve, which keeps its warnings off

    config = ServeDeploySchema.model_validate(SERVE_CONFIG)
    (application,) = config.applications
    (deployment,) = application.deployments
    (group,) = SERVICE["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert deployment.name == "model" and deployment.num_replicas == group["replicas"] == group["minReplicas"]
    # One replica a pod, with a CPU left for the proxy.
    assert application.args["runtime.cpus_per_worker"] + 1 == int(container["resources"]["limits"]["cpu"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["serve"] == config.http_options.port == container["readinessProbe"]["httpGet"]["port"]

    (tmp_path / "token").write_text("t" * 32)
    places = {"checkpoint": write_checkpoint(tmp_path), "token_file": str(tmp_path / "token")}
    assert type(build({**application.args, **places})).__name__ == "Application"
    for arguments, message in (
        ({**application.args, "checkpoint": places["checkpoint"], "token_file": ""}, "no token"),
        ({**application.args, **places, "runtime.gpu_per_worker": 1}, "gpus_per_worker"),
        ({**application.args, **places, "checkpoint": ""}, "names no folder"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            build(arguments)


@pytest.mark.parametrize("pod", list_pods(SERVICE["rayClusterConfig"]))
def test_the_token_of_requests_is_a_file_of_a_secret(pod: dict[str, Any]):
    (container,), (volume,) = pod["containers"], pod["volumes"]
    ((mount,), (item,)) = container["volumeMounts"], volume["secret"]["items"]
    assert mount["name"] == volume["name"] and mount["readOnly"]
    assert SERVE_CONFIG["applications"][0]["args"]["token_file"] == f"{mount['mountPath']}/{item['path']}"


def test_the_proxies_of_a_service_want_its_token() -> None:
    for pod in list_pods(SERVICE["rayClusterConfig"]):
        (container,) = pod["containers"]
        variables = {one["name"]: one["value"] for one in container["env"]}
        module, _, name = variables[SERVE_CALLBACK_VARIABLE].rpartition(".")
        assert getattr(importlib.import_module(module), name) is proxy.make_middlewares
        (mount,) = container["volumeMounts"]
        assert variables[proxy.TOKEN_FILE_VARIABLE] == f"{mount['mountPath']}/token"
