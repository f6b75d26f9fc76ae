"""Split the words of a command line into paths, key=value changes and flags."""

import re
from dataclasses import dataclass
from typing import Any

from eav_ray.config import parse_changes
from eav_ray.errors import ConfigError


@dataclass(frozen=True)
class Arguments:
    paths: list[str]  # words without "="
    changes: dict[str, Any]  # words with "="
    flags: dict[str, str]  # --name value, or --name alone

    def parse_count(self, flag: str, default: int) -> int:
        """A whole number from 1, given as `--flag`."""
        text = self.flags.get(flag, str(default))
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
            raise ConfigError(f"--{flag} is {text!r}; give a whole number from 1, for example --{flag} {default}")
        return int(text)


def parse_arguments(words: list[str], flags: tuple[str, ...]) -> Arguments:
    paths: list[str] = []
    changes: list[str] = []
    given_flags: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name + "!" in flags:
                given_flags[name] = "yes"
            elif name in flags:
                given_flags[name] = value if equals else next(rest, "")
            else:
                allowed = ", ".join(f"--{f.removesuffix('!')}" for f in ("help", *flags))
                raise ConfigError(f"--{name} is not an option of this job; it takes {allowed}, and key=value changes")
        elif "=" in word:
            changes.append(word)
        else:
            paths.append(word)
    return Arguments(paths, parse_changes(changes), given_flags)
