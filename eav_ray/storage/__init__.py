"""Everything that is kept: in folders, in `s3://`, `gs://` or `az://`, and the rule by which a set of files counts."""

from eav_ray.storage.files import (
    check_format,
    check_store_name,
    encode_documents,
    hash_content,
    io_errors,
    list_package_versions,
    replace_file,
    sha256,
)
from eav_ray.storage.lease import Lease
from eav_ray.storage.node_cache import NodeCache
from eav_ray.storage.store import COMMIT, LOCK, Commit, CommittedFile, HashingWriter, Store, split_store_path

__all__ = [
    "COMMIT",
    "LOCK",
    "Commit",
    "CommittedFile",
    "HashingWriter",
    "Lease",
    "NodeCache",
    "Store",
    "check_format",
    "check_store_name",
    "encode_documents",
    "hash_content",
    "io_errors",
    "list_package_versions",
    "replace_file",
    "sha256",
    "split_store_path",
]
