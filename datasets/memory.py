"""How much memory there is, and a refusal for what a file claims beyond it."""

from __future__ import annotations

import os

from flowleap.policy.spec import FlowleapError

_SMALL = 256 * 2**20  # below this, nobody asks the system


def require_memory(nbytes: int, where: str) -> None:
    """Raise `FlowleapError` unless `nbytes` fit into the memory that is free.

    A few bytes of metadata can claim any shape, and a system that runs out of memory kills without a word.
    """
    if nbytes > _SMALL and nbytes > free_memory():
        raise FlowleapError(
            f"{where} takes {nbytes / 1e9:,.1f} GB, more than the memory that is free "
            f"({free_memory() / 1e9:.1f} GB): the dataset is damaged, or needs a larger machine"
        )


def free_memory() -> int:
    """Bytes of memory that are free or hold caches, a very large number where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return 2**62
