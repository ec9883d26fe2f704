"""The machine that a command works on: how many CPUs it has for us, and how much memory."""

from __future__ import annotations

import os

import psutil

SHARE = 0.8
"""Of the memory that is free, what may be taken where nobody says how much."""


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allowed_bytes(memory: int | None = None) -> int:
    """Bytes that may be taken: as many as were given, else most of what is free now."""
    return memory or int(psutil.virtual_memory().available * SHARE)


def fitting_threads(cpus: int, each_bytes: int) -> int:
    """Threads that have room at once: one for each CPU, fewer where the memory does not hold them, at least one."""
    return max(1, min(cpus, allowed_bytes() // each_bytes)) if each_bytes else cpus


def gb(size: int) -> str:
    """Bytes for a person: ``1.50 GB``."""
    return f"{size / 10**9:.2f} GB"
