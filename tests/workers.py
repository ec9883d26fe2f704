"""Dask's scheduler and workers for the tests, in this process: nothing is started."""

from __future__ import annotations

import distributed


def workers_here(count: int = 1) -> distributed.LocalCluster:
    """Make a scheduler that has an address, with so many workers of two threads."""
    return distributed.LocalCluster(
        n_workers=count,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    )
