"""Where a store is, as users name it: a folder, or a bucket with options in the query of its URL."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from eav_ray.config.urls import check_no_secret
from eav_ray.errors import DataError, suggest_nearest

REMOTE_SCHEMES = ("s3", "gs", "az")
OPTIONS = {
    "region": "region of the bucket",
    "endpoint": "address of a server that is not Amazon's, such as http://minio:9000",
    "checksum": "sha256: send a hash beside each file; none: sign no hash of it either",
    "exclusive": "false: write without leases, to a server that cannot write conditionally",
    "retry_s": "seconds for which a request that fails is repeated",
}
CHECKSUMS = ("sha256", "none")


@dataclass(frozen=True)
class StoreLocation:
    """One store.

    Attributes:
        scheme: `s3`, `gs` or `az`; empty for a folder of this machine.
        path: `bucket/folder`, or the folder.
        options: Of the query, in the order of their names.
    """

    scheme: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.join("")

    def join(self, name: str) -> str:
        """Name something in the store, as a user would: the options come last."""
        path = f"{self.path.rstrip('/')}/{name}" if name else self.path
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{path}{query}" if self.scheme else path

    def get_option(self, name: str, default: str = "") -> str:
        return dict(self.options).get(name, default)

    @property
    def bucket_and_folder(self) -> tuple[str, str]:
        bucket, _, folder = self.path.partition("/")
        return bucket, folder


def parse_location(text: str) -> StoreLocation:
    """Parse what a user named.

    Raises:
        DataError: No known kind of store, or an unknown option.
        ConfigError: A secret in the URL.
    """
    if "://" not in text:
        return StoreLocation("", text.rstrip("/") or "/")
    check_no_secret(text)
    url = urlsplit(text)
    if url.scheme == "file":
        return StoreLocation("", str(Path(unquote(url.path))))
    path = f"{url.netloc}{url.path}".rstrip("/")
    if url.scheme not in REMOTE_SCHEMES or not url.netloc:
        raise DataError(
            f"{text} is not a store; a store is a folder, s3://bucket/folder, gs://bucket/folder or az://container/folder"
        )
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS:
            raise DataError(
                f"{text} has the option {name}; a store takes {', '.join(OPTIONS)}{suggest_nearest(name, OPTIONS)}"
            )
    if options.get("checksum", "none") not in CHECKSUMS:
        raise DataError(f"{text} has checksum={options['checksum']}; it may be {' or '.join(CHECKSUMS)}")
    return StoreLocation(url.scheme, path, tuple(sorted(options.items())))
