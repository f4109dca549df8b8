"""A graph in the background, and for asyncio."""

from __future__ import annotations

from typing import Any

__all__ = ["aimap", "amap", "arun", "start", "start_map"]


def start(graph: Any, inputs: Any = None, output_name: Any = None, **options: Any) -> Any:
    raise NotImplementedError


def start_map(graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any) -> Any:
    raise NotImplementedError


async def arun(graph: Any, inputs: Any = None, output_name: Any = None, **options: Any) -> Any:
    raise NotImplementedError


async def amap(graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any) -> Any:
    raise NotImplementedError


def aimap(graph: Any, inputs: Any, map_over: Any, *args: Any, **options: Any) -> Any:
    raise NotImplementedError
