"""URLs in experiments: what they must not hold."""

from urllib.parse import parse_qsl, urlsplit

from eav_ray.errors import ConfigError

SECRET_WORDS = ("password", "passwd", "pwd", "secret", "token", "key", "sig", "credential")  # in names of options


def check_no_secret(url: str) -> str:
    """Refuse a URL that holds a secret: it would be kept in experiments, checkpoints, logs and lists of processes.

    Returns:
        The URL.
    Raises:
        ConfigError: Without the secret in its text.
    """
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secret_options = [name for name in options if any(word in name.lower() for word in SECRET_WORDS)]
    if ":" in user or secret_options:
        where = f"the option {secret_options[0]}" if secret_options else "the part before the @"
        raise ConfigError(
            f"{parts.scheme}://{host}{parts.path} has a secret in {where}; take it out, and give it on every node by "
            "the environment or the credentials file of that service (AWS_SECRET_ACCESS_KEY, PGPASSWORD, "
            "MLFLOW_TRACKING_PASSWORD)"
        )
    return url
