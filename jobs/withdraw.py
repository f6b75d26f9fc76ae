"""Run `eav withdraw` as a job, with the same words: `ray job submit ... -- python jobs/withdraw.py ...`."""

from eav_ray.cli.main import main

if __name__ == "__main__":
    main("withdraw")
