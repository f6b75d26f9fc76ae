"""`eav serve`: serve a checkpoint over HTTP and WebSocket."""

from typing import Annotated

from eav_ray.cli.arguments import (
    CheckpointWords,
    find_checkpoint_path,
    get_results_store,
    offer,
    split_checkpoint_words,
)


def serve(
    words: CheckpointWords = None,
    host: Annotated[str, offer("address to listen on", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, offer("port to listen on", metavar="PORT", min=1, max=65535)] = 8000,
    token_file: Annotated[
        str, offer("file of the token that requests must bring", metavar="FILE", show_default="EAV_RAY_SERVE_TOKEN")
    ] = "",
    name: Annotated[str, offer("the application's name on a cluster", metavar="NAME")] = "eav-ray",
    route: Annotated[str, offer("the application's prefix of paths", metavar="PATH")] = "/",
    replicas: Annotated[int, offer("how many copies answer", metavar="N", min=1)] = 1,
) -> None:
    """Serve a checkpoint over HTTP and WebSocket.

    By Ray Serve, until Ctrl-C: /health, /predict, /stream. With runtime.address=HOST:PORT it is an application of a
    running cluster. Beyond loopback it needs a token.

    eav serve best --port 8000
    EAV_RAY_SERVE_TOKEN=$(openssl rand -hex 32) eav serve best --host 0.0.0.0
    """
    checkpoint, changes = split_checkpoint_words(words)

    from eav_ray.config.extras import require_extra

    modules = {"fastapi": "ray[serve]", "uvicorn": "ray[serve]", "python_multipart": "python-multipart"}
    require_extra("serve", "`eav serve`", modules)

    from eav_ray.pipelines.inference.serve import serve_checkpoint

    path = find_checkpoint_path(checkpoint, get_results_store(changes))
    serve_checkpoint(
        path, changes, host=host, port=port, token_file=token_file, name=name, route=route, replicas=replicas
    )
