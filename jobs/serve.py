"""Serve a checkpoint over HTTP and WebSocket by Ray Serve, until Ctrl-C: /health, /predict, /stream.

python jobs/serve.py best --port 8000
EAV_RAY_SERVE_TOKEN=$(openssl rand -hex 32) python jobs/serve.py best --host 0.0.0.0

With runtime.address=HOST:PORT it is an application of a cluster (--name, --route; --replicas on several nodes).
--token-file FILE holds the token instead of the environment.
"""

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.run_command import run_command
from eav_ray.errors import ConfigError
from eav_ray.pipelines.inference.serve import serve_checkpoint


def main(arguments: Arguments) -> None:
    if len(arguments.paths) != 1:
        raise ConfigError("give exactly one checkpoint folder; jobs/train.py and jobs/pull.py print its path")
    flags = arguments.flags
    serve_checkpoint(
        arguments.paths[0],
        arguments.changes,
        host=flags.get("host") or "127.0.0.1",
        port=arguments.parse_count("port", 8000),
        token_file=flags.get("token-file", ""),
        name=flags.get("name") or "eav-ray",
        route=flags.get("route") or "/",
        replicas=arguments.parse_count("replicas", 1),
    )


if __name__ == "__main__":
    run_command(__doc__ or "", main, flags=("host", "port", "token-file", "name", "route", "replicas"))
