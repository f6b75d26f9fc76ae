"""`eav export`: write a checkpoint as a folder to publish."""

from typing import Annotated

from eav_ray.cli.arguments import (
    CheckpointWords,
    find_checkpoint_path,
    get_results_store,
    offer,
    split_checkpoint_words,
)


def export(
    words: CheckpointWords = None,
    to: Annotated[str, offer("the folder that is written", metavar="FOLDER")] = "exported",
    onnx: Annotated[bool, offer("write its networks as ONNX, too", "--onnx")] = False,
) -> None:
    """Write a checkpoint as a folder to publish.

    It has config.json, preprocessing.json, model.safetensors and a model card,
    as the Hugging Face hub expects them. What takes a checkpoint takes it, too.
    With --onnx, it runs without torch.

    eav export best --to folder
    eav export fusion-0f3a/2 store.results=s3://lab/results --to folder --onnx
    """
    name, changes = split_checkpoint_words(words)

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.errors import ConfigError
    from eav_ray.pipelines.inference.export import export_checkpoint
    from eav_ray.training.checkpoint import open_finished_checkpoint

    if others := [key for key in changes if key != "store.results"]:
        raise ConfigError(f"{others[0]}=... is given, but an export changes nothing of a checkpoint but where it lies")
    folder = resolve_user_path("--to", to, allow_remote=False)
    results = get_results_store(changes)
    checkpoint = open_finished_checkpoint(find_checkpoint_path(name, results))
    exported = export_checkpoint(checkpoint, folder, results=results, onnx=onnx)
    print(f"exported: {exported.path}")
    for line in exported.lines:
        print(line)
    print(f"predict with it: eav predict {exported.path} data.root=...")
