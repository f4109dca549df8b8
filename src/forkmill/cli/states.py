"""State graphs from the command line: ``forkmill run MODULE:APP``, ``forkmill sessions STORE``.

======================  =======================================================================
forkmill run M:APP      what is done with the session
======================  =======================================================================
no --session            a new one is begun
unknown                 is begun, with --set NAME=VALUE as its input
completed               with --set a new turn; else its state is printed, and nothing runs
unfinished              it goes on; --resume or --answer answer what it asks
======================  =======================================================================

The state is printed as one line of JSON; what has no JSON as text. The status tells scripts what it
came to: 0 completed, 1 failed, 3 it waits (for an answer, or because it was stopped).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from .. import errors
from .._target import value_of
from .base import FAILED, INTERRUPTED, fail, tell
from .page import Page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["WAITS", "is_state_graph", "run_app", "sessions_"]

WAITS = 3


def is_state_graph(thing: Any) -> bool:
    """Whether it is what `StateGraph.compile` makes, or a StateGraph."""
    return _kind(thing) in ("App", "StateGraph")


def _kind(thing: Any) -> str:
    kind = type(thing)
    home = kind.__module__ or ""
    return kind.__name__ if home.startswith("forkmill.stategraph.") else ""


# ------------------------------------------------------------------------------ run


def run_app(
    app: Any,
    given: Mapping[str, Any],
    *,
    session: str | None,
    resume: str | None,
    answers: tuple[tuple[str, str], ...],
    abandon: bool,
    take_over: bool,
    plan_only: bool,
    as_json: bool,
    sinks: tuple[Any, ...] = (),
) -> int:
    """Run a state graph, or go on with a session of it; the exit status."""
    if _kind(app) == "StateGraph":
        raise click.BadParameter(
            "it is a StateGraph; name what its compile(checkpoints=...) returned",
            param_hint="'MODULE:APP'",
        )
    if plan_only:
        click.echo(json.dumps({"mermaid": app.to_mermaid()}) if as_json else app.describe())
        return 0
    if resume is not None and answers:
        raise click.UsageError("--resume answers the one question, --answer one of several")
    if (resume is not None or answers) and session is None:
        raise click.UsageError("--resume and --answer need --session ID")
    try:
        run = _carried_out(
            app, dict(given), session, resume, dict(answers), abandon, take_over, sinks
        )
    except KeyboardInterrupt as error:
        run = getattr(error, "state_run", None)
        tell("stopped" + (f"; to go on: --session {run.session}" if run and run.session else ""))
        return INTERRUPTED
    except (errors.SessionConflict, errors.SessionBusy) as error:
        fail(str(error))
    except Exception as error:
        run = getattr(error, "state_run", None)
        _tell_failures(error, run)
        if run is not None and as_json:
            click.echo(json.dumps(facts(run)))
        return FAILED
    click.echo(json.dumps(facts(run)) if as_json else json.dumps(_plain(run.state)))
    for question in run.interrupts:
        tell(f"{question.node} asks ({question.id}): {_text(question.value)}")
    where = f"; session {run.session}" if run.session else ""
    follows = f"; next: {_ahead(run.frontier)}" if run.frontier else ""
    tell(f"{run.status} after step {run.step}{follows}{where}")
    return 0 if run.ok else WAITS


def _carried_out(
    app: Any,
    given: dict[str, Any],
    session: str | None,
    resume: str | None,
    answers: dict[str, str],
    abandon: bool,
    take_over: bool,
    sinks: tuple[Any, ...],
) -> Any:
    if session is None:
        return app.invoke(given, sinks=sinks)
    if resume is not None:
        return app.resume(value_of(resume), session=session, take_over=take_over, sinks=sinks)
    if answers:
        read = {name: value_of(text) for name, text in answers.items()}
        return app.resume(answers=read, session=session, take_over=take_over, sinks=sinks)
    store = app.checkpoints
    if store is None:
        raise errors.SessionConflict(
            "it stores no sessions: compile(checkpoints='sqlite:runs.db'), or run it without "
            "--session"
        )
    saved = store.load(session)
    if saved is None or abandon or given:
        return app.invoke(given, session=session, abandon=abandon, take_over=take_over, sinks=sinks)
    if _waits(saved):
        return app.open(session).result()
    return app.resume(session=session, take_over=take_over, sinks=sinks)


def _waits(saved: Any) -> bool:
    """Whether nothing but an answer lets it go on."""
    asked: dict[int, int] = {}
    for row in saved.pending:
        sign = {"question": 1, "answer": -1}.get(row.kind, 0)
        asked[row.task] = asked.get(row.task, 0) + sign
    done = {row.task for row in saved.pending if row.kind == "update"}
    waiting = {task for task, count in asked.items() if count > 0} - done
    return bool(waiting) and len(waiting | done) == len(saved.checkpoint.frontier)


def _tell_failures(error: BaseException, run: Any) -> None:
    failures = getattr(run, "failures", None) or []
    for failure in failures:
        tell(f"node {failure.stage}: {type(failure.error).__name__}: {failure.error}")
    if all(failure.error is not error for failure in failures):
        tell(f"{type(error).__name__}: {error}")
    if run is not None and run.session:
        tell(f"{run.status} after step {run.step}; to go on: --session {run.session}")


def facts(run: Any) -> dict[str, Any]:
    """A result as plain data."""
    return {
        "status": run.status,
        "session": run.session,
        "step": run.step,
        "seq": run.seq,
        "state": _plain(run.state),
        "frontier": list(run.frontier),
        "interrupts": [
            {"id": q.id, "node": q.node, "value": _plain(q.value)} for q in run.interrupts
        ],
        "waiting": list(run.waiting),
        "failures": [
            {"node": f.stage, "error": f"{type(f.error).__name__}: {f.error}"} for f in run.failures
        ],
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; what it does not know as text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else repr(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    items = getattr(value, "items", None)
    if callable(items):
        return {str(key): _plain(item) for key, item in items()}
    names = getattr(type(value), "__dataclass_fields__", None)
    if names:
        return {name: _plain(getattr(value, name)) for name in names if hasattr(value, name)}
    return repr(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_plain(value))


# ------------------------------------------------------------------------- sessions


@click.command("sessions", cls=Page)
@click.argument("store", metavar="STORE")
@click.argument("session", metavar="[ID]", required=False)
@click.option("--history", is_flag=True, help="The checkpoints of session ID.")
@click.option("--seq", type=click.IntRange(1), metavar="N", help="Show ID at checkpoint N.")
@click.option(
    "--prune",
    type=click.IntRange(1),
    metavar="KEEP",
    help="Delete all but the last KEEP checkpoints, of ID or of every session.",
)
@click.option("--delete", is_flag=True, help="Delete session ID.")
@click.option(
    "--codec",
    type=click.Choice(["pickle", "json", "msgpack"]),
    default="pickle",
    show_default=True,
    help="How the store's values are encoded.",
)
@click.option(
    "--key-file",
    type=click.File("rb"),
    metavar="FILE",
    help="The bytes of the store's HMAC key.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON instead of tables.")
def sessions_(
    store: str,
    session: str | None,
    history: bool,
    seq: int | None,
    prune: int | None,
    delete: bool,
    codec: str,
    key_file: Any,
    as_json: bool,
) -> int:
    """Look at the sessions of state graphs: all of a STORE, or the one with ID.

    STORE is a file (runs.db, sqlite:runs.db) or postgresql://... No code of a stored value is run:
    what is more than plain data is shown by its size.

    \b
    forkmill sessions runs.db
    forkmill sessions runs.db job-1 --history
    """
    opened = _opened(store, codec, key_file.read() if key_file else None)
    if session is None and (history or delete or seq):
        raise click.UsageError("--history, --seq and --delete need the ID of a session")
    try:
        with opened:
            if prune is not None:
                gone = opened.prune(session, keep=prune)
                click.echo(json.dumps({"deleted": gone}) if as_json else f"{gone} deleted")
            elif session is None:
                _show_all(opened.sessions(), as_json)
            elif delete:
                opened.delete(session)
            elif history:
                _show_history(_there(opened.history(session), session, store), as_json)
            else:
                saved = _there(opened.load(session, seq), session, store)
                _show_one(saved, opened.codec, as_json)
    except errors.PoolError as error:
        fail(str(error))
    return 0


def _opened(store: str, codec: str, key: bytes | None) -> Any:
    from ..stategraph.checkpoints import opened

    path = store.removeprefix("sqlite:")
    if not store.startswith(("postgresql:", "postgres:")):
        if not os.path.exists(path):
            raise click.BadParameter(f"there is no file {path!r}", param_hint="'STORE'")
        store = f"sqlite:{path}"
    options = {} if key is None else {"key": key}
    try:
        return opened(store, codec=codec, **options)
    except (ValueError, ImportError) as error:
        raise click.BadParameter(str(error), param_hint="'STORE'") from None


def _there(found: Any, session: str, store: str) -> Any:
    return found or fail(f"there is no session {session!r} in {store}")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _show_all(infos: list[Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_info(info) for info in infos]))
        return
    from .screen import table

    rows = [
        (info.id, info.status, info.step, info.seq, _when(info.at), info.owner or "")
        for info in infos
    ]
    table(f"{len(infos)} sessions", ("id", "status", ">step", ">seq", "stored", "claimed by"), rows)


def _info(info: Any) -> dict[str, Any]:
    return {
        "id": info.id,
        "status": info.status,
        "step": info.step,
        "seq": info.seq,
        "hash": info.hash,
        "at": info.at,
        "owner": str(info.owner) if info.owner else None,
        "alive": info.alive,
    }


def _point(at: Any) -> dict[str, Any]:
    return {
        "seq": at.seq,
        "step": at.step,
        "kind": at.kind,
        "author": at.author,
        "at": at.at,
        "next": [task.node for task in at.frontier],
    }


def _show_history(line: list[Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_point(at) for at in line]))
        return
    from .screen import table

    rows = [
        (at.seq, at.step, at.kind, at.author, _when(at.at), _ahead(t.node for t in at.frontier))
        for at in line
    ]
    table(f"{len(line)} checkpoints", (">seq", ">step", "kind", "by", "stored", "next"), rows)


def _show_one(saved: Any, codec: Any, as_json: bool) -> None:
    values = {key: shown(codec.name, codec, parts) for key, parts in saved.values.items()}
    rows = [
        {
            "task": row.task,
            "node": saved.checkpoint.frontier[row.task].node,
            "kind": row.kind,
            "n": row.n,
            "value": shown(codec.name, codec, (row.data,))
            if row.kind in ("question", "answer")
            else f"<{len(row.data)} bytes>",
        }
        for row in saved.pending
    ]
    if as_json:
        whole = {**_info(saved.info), **_point(saved.checkpoint), "values": values, "pending": rows}
        click.echo(json.dumps(whole))
        return
    from .screen import table

    at = saved.checkpoint
    ahead = _ahead(task.node for task in at.frontier) or "nothing"
    title = f"{at.session}: {saved.info.status}, step {at.step}, checkpoint {at.seq}; next: {ahead}"
    table(title, ("key", "value"), [(key, _cut(value)) for key, value in values.items()])
    if rows:
        cells = [
            (str(row["task"]), row["node"], f"{row['kind']} {row['n']}", _cut(row["value"]))
            for row in rows
        ]
        table("of the step that goes on", ("task", "node", "what", "value"), cells)


_NAMES = 5


def _ahead(nodes: Iterable[str]) -> str:
    """The tasks that are next in a few words: many are of one node."""
    counts = Counter(nodes)
    named = [name if count == 1 else f"{name} x{count}" for name, count in counts.items()]
    more = [f"and {len(named) - _NAMES} more"] if len(named) > _NAMES else []
    return ", ".join(named[:_NAMES] + more)


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:190]}... ({len(text):,} characters)"


class _PlainOnly(pickle.Unpickler):
    """Reads pickles of plain data, and runs nobody's code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a persistent id")


def shown(name: str, codec: Any, parts: tuple[Any, ...]) -> Any:
    """A stored value for people: decoded where that runs no code, else by its size."""
    read = []
    for part in parts:
        data = bytes(part)
        try:
            value = _PlainOnly(io.BytesIO(data)).load() if name == "pickle" else codec.decode(data)
        except Exception as error:
            what = f" of {error}" if isinstance(error, pickle.UnpicklingError) else ""
            return f"<{sum(len(p) for p in parts):,} bytes{what}>"
        read.append(value)
    whole = [item for value in read for item in value] if len(read) > 1 else read[0]
    return _plain(whole)
