"""tqdm's `process_map` on forkmill's workers, and a lazy one.

Bars on iterators need nothing of this: ``tqdm(pool.map(fn, items), total=len(items))``.
"""

from __future__ import annotations

from contextlib import closing
from operator import length_hint
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm as _tqdm

from ..pool.process_pool import ProcessPool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

__all__ = ["process_imap", "process_map"]


def process_map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    max_workers: int | None = None,
    chunksize: int | None = None,
    tqdm_class: Any = _tqdm,
    **tqdm_options: Any,
) -> list[Any]:
    """As `tqdm.contrib.concurrent.process_map`.

    Args:
        fn: What to call.
        *iterables: Its arguments.
        max_workers: How many workers; None: the CPUs this process may use.
        chunksize: Items sent to a worker at once; None finds out what is best.
        tqdm_class: What draws the bar.
        **tqdm_options: Of the bar: total, desc, disable, ...

    Returns:
        The results, in the order of the input.

    Raises:
        Exception: The first item's that failed, as `ProcessPool.map`.
    """
    with closing(
        process_imap(
            fn,
            *iterables,
            max_workers=max_workers,
            chunksize=chunksize,
            tqdm_class=tqdm_class,
            **tqdm_options,
        )
    ) as results:
        return list(results)


def process_imap(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    max_workers: int | None = None,
    chunksize: int | None = None,
    ordered: bool = True,
    tqdm_class: Any = _tqdm,
    **tqdm_options: Any,
) -> Generator[Any, None, None]:
    """As `process_map`, yielding the results as they come: for inputs that have no end.

    Args:
        fn, *iterables, max_workers, chunksize: As of `process_map`.
        ordered: Results in the order of the input; else as they finish.
        tqdm_class, **tqdm_options: As of `process_map`.

    Yields:
        The results.
    """
    if "total" not in tqdm_options:
        # 0 is "not known" too: a bar without an end is right for both.
        tqdm_options["total"] = min((length_hint(it) for it in iterables), default=0) or None
    with ProcessPool(max_workers) as pool:  # before the bar, which has a thread of its own
        results = pool.map(fn, *iterables, chunksize=chunksize, ordered=ordered)
        yield from tqdm_class(results, **tqdm_options)
