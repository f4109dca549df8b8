"""Calls on an engine that exists: Dask or Ray for contexts, Daft for graphs over frames.

    Executor.submit, map ──▶ Calls ─┐                          ┌──▶ on_dask
    RemoteLane.put_many  ──▶ Stage ─┴─▶ Courier ──▶ Backend ───┴──▶ on_ray
                                        chunks, by measured time;   there.run in their workers
                                        deaths, order of blame

==============  =================================================================================
`backend`       what an engine must be able to do, and what it says of itself
`wire`          objects to bytes and back: chunks of items, functions by value, shared values
`there`         what runs in an engine's workers, and nothing else
`courier`       which items go together, how many at once; what becomes of them when a worker dies
`executor`      the Executor over a courier; `lane`: a stage of a pipeline over one
`on_dask`       the context ``dask``; `on_ray`: the context ``ray``; `local`: clusters of our own
`on_daft`       `fm.DaftEngine`
==============  =================================================================================

Nothing of this, and nothing of an engine's, is imported before it is used.
"""
