"""What a check says: passed, failed, or that it cannot tell."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from eav_ray.storage import sha256

Outcome = Literal["passed", "failed", "cannot tell"]
MAX_SHOWN_NAMES = 3  # names, at most, in a finding


@dataclass(frozen=True)
class LeakCheck:
    """One check of one checkpoint.

    Attributes:
        outcome: `cannot tell` is neither of the others: what is needed is not at hand, or would not show a leak.
        detail: What was compared, what is wrong, or why nothing can be told.
    """

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class LeakAudit:
    """All checks of one checkpoint.

    Attributes:
        commit_sha256: Of the checkpoint: the identity of what was audited.
    """

    checks: tuple[LeakCheck, ...]
    commit_sha256: str = ""

    @property
    def failed(self) -> bool:
        """Whether a leak was found. Without one, not all need have passed: see `count_outcomes`."""
        return any(check.outcome == "failed" for check in self.checks)

    @property
    def summary(self) -> list[dict[str, object]]:
        return [asdict(check) for check in self.checks]

    @property
    def sha256(self) -> str:
        """Of the checkpoint's identity and the summary as JSON: no two checkpoints have the same."""
        return sha256(json.dumps([self.commit_sha256, self.summary], sort_keys=True).encode())

    @property
    def first_failure(self) -> str:
        return next((f"{check.name}: {check.detail}" for check in self.checks if check.outcome == "failed"), "")


def count_outcomes(outcomes: Iterable[str]) -> dict[Outcome, int]:
    """Count the outcomes of checks; each has its number, 0 too."""
    listed = list(outcomes)
    return {
        "passed": listed.count("passed"),
        "failed": listed.count("failed"),
        "cannot tell": listed.count("cannot tell"),
    }


def judge(name: str, problem: str, otherwise: str) -> LeakCheck:
    """Fail a check for a problem; without one it is passed, with another detail."""
    return LeakCheck(name, "failed" if problem else "passed", problem or otherwise)


def leave_open(name: str, reason: str) -> LeakCheck:
    """Say that a check cannot tell, and why."""
    return LeakCheck(name, "cannot tell", reason)


def describe_names(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:MAX_SHOWN_NAMES])
    return shown if len(names) <= MAX_SHOWN_NAMES else f"{shown} and {len(names) - MAX_SHOWN_NAMES} more"
