"""dask's scheduler "processes" runs on a ProcessPool."""

from __future__ import annotations

import dask.multiprocessing

import forkmill as fm

dask.multiprocessing.ProcessPoolExecutor = fm.ProcessPool
