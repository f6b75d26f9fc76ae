"""Keys to an object store from the file in which Amazon's own tools keep them; obstore reads the environment alone."""

import configparser
import contextlib
import os
from pathlib import Path


def find_credentials() -> dict[str, str]:
    """Find the keys of `AWS_PROFILE` in `AWS_SHARED_CREDENTIALS_FILE`; none where the environment has keys.

    Returns:
        By the names that obstore has for them.
    """
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    parser, found = configparser.RawConfigParser(), {}
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read_string(file.read_text())
    section = os.environ.get("AWS_PROFILE", "default")
    for ours, theirs in (
        ("access_key_id", "aws_access_key_id"),
        ("secret_access_key", "aws_secret_access_key"),
        ("session_token", "aws_session_token"),
    ):
        if value := parser.get(section, theirs, fallback=""):
            found[ours] = value
    return found
