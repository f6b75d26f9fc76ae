"""Give memory back to the machine that this process has freed: the C library keeps it, in a heap a thread."""

import ctypes
import gc

MAX_ARENAS = 2  # heaps; by default eight for each core, in which what threads have freed stays apart
M_ARENA_MAX = -8  # of glibc's malloc.h


def limit_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc. To be called before there are many threads."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, MAX_ARENAS)


def release_heaps() -> None:
    """Give freed memory back, where the C library is glibc: between two trainings, not within one."""
    gc.collect()
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
