"""What is shipped to a cluster, as read from the files of the repository."""

import re
import tomllib

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
