"""pipefunc's own default executor, which `parallel=True` makes, is a ProcessPool."""

from __future__ import annotations

import concurrent.futures

import pipefunc._utils
import pipefunc.map._run

import forkmill as fm

pipefunc.map._run.ProcessPoolExecutor = fm.ProcessPool
# Where it asks what an executor is: ours beside the stock one.
pipefunc._utils.ProcessPoolExecutor = concurrent.futures.ProcessPoolExecutor | fm.ProcessPool
