"""Other libraries on forkmill's workers.

joblib, and so scikit-learn
    joblib finds backends by name in a table of its own, and has no entry points: say once that we
    are there.

        from forkmill.integrations import register_joblib

        register_joblib()
        with joblib.parallel_config(backend="forkmill"):
            cross_val_score(model, X, y, n_jobs=4)

tqdm
    ``tqdm(pool.map(fn, items), total=len(items))`` needs nothing of ours. For what is written with
    `tqdm.contrib.concurrent.process_map` there is `forkmill.integrations.tqdm.process_map`.

dask, asyncio, scipy, and whatever takes an executor or a map
    A pool is an executor, and ``pool.map`` a map: ``dask.config.set(pool=fm.ProcessPool(4))``,
    ``loop.run_in_executor(pool, ...)``, ``scipy.optimize...(workers=pool.map)``.

The libraries are imported when they are asked for; ``pip install 'forkmill[joblib,tqdm]'`` brings
them.
"""

from __future__ import annotations

__all__ = ["register_joblib"]


def register_joblib() -> None:
    """Make ``backend="forkmill"`` known to joblib. Idempotent.

    Raises:
        ImportError: joblib is not installed.
    """
    from .joblib import register

    register()
