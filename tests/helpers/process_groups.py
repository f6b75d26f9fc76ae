"""How a rank that a test started ends."""

import os
import sys

import torch.distributed as dist


def leave_group() -> None:
    """The end of a rank that a test started.

    A thread of torch that wants the interpreter while it is taken down ends the process with SIGABRT, now and then.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
