"""What is shipped to a cluster, as read from the files of the repository."""

import re
import tomllib
from typing import Any

import yaml
from packaging.utils import canonicalize_name

from tests.helpers.paths import REPOSITORY

CLUSTER = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Comments dropped, continued lines joined: one string an instruction.
DOCKERFILE = [
    line
    for line in re.sub(r"^#.*\n", "", (REPOSITORY / "infra/Dockerfile").read_text(), flags=re.M)
    .replace("\\\n", " ")
    .splitlines()
    if line.strip()
]
CONSTRAINTS = [
    line.strip()
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
PINS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in CONSTRAINTS)}

WORKERS = {name: node for name, node in CLUSTER["available_node_types"].items() if name != CLUSTER["head_node_type"]}

MANIFESTS = {
    kind: yaml.safe_load((REPOSITORY / "infra" / f"kuberay-{name}.yaml").read_text())
    for kind, name in {"RayCluster": "cluster", "RayJob": "search", "RayService": "serve"}.items()
}
KUBERAY, SEARCH, SERVICE = (MANIFESTS[kind]["spec"] for kind in ("RayCluster", "RayJob", "RayService"))


def list_pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """List the pods' specs, the head's first."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


PODS = [*list_pods(KUBERAY), *list_pods(SEARCH["rayClusterSpec"]), *list_pods(SERVICE["rayClusterConfig"])]
