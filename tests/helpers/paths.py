"""Where the repository and its experiments lie, whichever folder a test is in."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENTS = REPOSITORY / "eav_ray" / "experiments"
DEMO = EXPERIMENTS / "demo.yaml"
TINY = REPOSITORY / "tests" / "integration" / "tiny.yaml"
