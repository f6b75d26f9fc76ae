"""Shards of a whole data set, written by this process without Ray."""

from dataclasses import asdict

from eav_ray.config import Experiment
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.shards.index import INDEX_FILE, ShardFile, ShardIndex, write_index
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.shards.writer import ShardWriter
from eav_ray.storage import list_package_versions


def write_shards(e: Experiment) -> None:
    """Preprocess what an experiment names, a shard a subject, to where the program looks for them."""
    store = open_shard_store(e)
    reader, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    has_eeg = "eeg" in e.data.modalities
    channels = registry.list_eeg_channels(reader, listing) if has_eeg else ()
    window_format = WindowFormat(e.preprocessing, e.data.modalities, len(channels))
    schema = make_schema(e.preprocessing, len(channels), e.data.modalities, len(e.data.targets.columns))
    files = []
    for subject in dict.fromkeys(r.subject for r in listing.recordings):
        own = [r for r in listing.recordings if r.subject == subject]
        with_eeg = [r for r in own if r.eeg] if has_eeg else []
        prepared = {
            r.recording: p
            for r, p in (prepare_eeg(reader, with_eeg, e.preprocessing.eeg, channels=channels) if with_eeg else ())
        }
        with ShardWriter(store, f"shards/{subject}.parquet", schema) as shard:
            for r in own:
                cut = cut_recording(r, window_format, prepared.get(r.recording))
                assert not cut.problems, cut.problems
                shard.add([encode_window(w, e.preprocessing) for w in cut.windows])
        files.append(ShardFile(shard.name, shard.sha256, shard.rows, subject))
    versions = list_package_versions()
    modalities = tuple(sorted(e.data.modalities))
    classes, targets = registry.list_classes(e.data, reader), e.data.targets.names
    index = ShardIndex("k", classes, modalities, len(channels), tuple(files), versions, channels, targets)
    write_index(
        store, index, {"data": asdict(e.data), "is_real": reader.is_real}, f"{name_index_folder(e)}/{INDEX_FILE}"
    )
