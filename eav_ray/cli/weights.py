"""`eav weights`: fetch published weights for machines without a network."""

from typing import Annotated

import typer

from eav_ray.cli.arguments import offer

WeightsWords = Annotated[list[str] | None, typer.Argument(metavar="fetch|list NAME", hidden=True)]


def weights(
    words: WeightsWords = None,
    to: Annotated[str, offer("the folder of all weights (store.weights)", metavar="FOLDER")] = "weights",
    revision: Annotated[str, offer("a branch, tag or commit on the hub", metavar="REVISION")] = "main",
) -> None:
    """Fetch published weights, or list those that were fetched.

    NAME is that of a model on the Hugging Face hub. Its safetensors, settings and licence are fetched with their
    hashes; jobs read them from the folder, and never from the network.

    eav weights fetch facebook/wav2vec2-base --to /data/weights
    eav weights list --to /data/weights
    """
    from eav_ray.config.paths import resolve_user_path
    from eav_ray.errors import ConfigError
    from eav_ray.storage.published_weights import fetch_weights, format_weights, list_weights

    action, *names = words or [""]
    if action not in ("fetch", "list") or bool(names) != (action == "fetch"):
        raise ConfigError(
            "write `eav weights fetch NAME`, for example `eav weights fetch facebook/wav2vec2-base`, or `eav weights "
            f"list`; got {' '.join(words or []) or 'neither'}"
        )
    folder = resolve_user_path("--to", to, allow_remote=False)
    if action == "list":
        found = [format_weights(each) for each in list_weights(folder)]
        print("\n".join(found) or f"{folder} has no fetched weights")
        return
    for name in names:
        print(format_weights(fetch_weights(name, folder, revision)))
    print(f"use them: model.audio.weights={names[0]} store.weights={folder}, with the modality that they are for")
