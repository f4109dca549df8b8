"""Steps that go straight on come to what all others come to, and stop where they have to."""

from __future__ import annotations

import operator
import signal
import threading
from typing import Annotated, Any, TypedDict

import pytest

import forkmill as fm
from forkmill.stategraph import run as runs


class State(TypedDict):
    n: int
    seen: list[int]
    log: Annotated[list[str], operator.add]


def says(name: str) -> Any:
    return lambda state: {"log": [f"{name}{state['n']}"]}


def fails_at_first() -> Any:
    tries: list[int] = []

    def node(state: Any) -> Any:
        tries.append(state["n"])
        if tries.count(state["n"]) < 3:
            raise ValueError("not yet")
        return {"log": [f"tried {tries.count(state['n'])}"]}

    return node


def fails(state: Any) -> Any:
    raise KeyError("never")


def asks(state: Any) -> Any:
    return {"log": [fm.interrupt(state["n"])]}


def ends(error: type[BaseException]) -> Any:
    def node(state: Any) -> Any:
        raise error

    return node


def tick(state: Any) -> Any:
    state["seen"].append("lost")
    return {"n": state["n"] + 1, "seen": [*range(state["n"])]}


def again(state: Any) -> str:
    return "tick" if state["n"] < 3 else fm.END


def bad_way(state: Any) -> str:
    raise StopIteration("no way")


def graph(kinds: Any, way: Any = again) -> Any:
    made = fm.StateGraph(State)
    made.add_node("tick", tick)
    made.add_edge(fm.START, "tick")
    made.add_node("join", lambda state: None, reads=["n"])
    for number, fn in enumerate(kinds):
        name = f"{number}"
        made.add_node(name, fn, on_error=fm.retry(3, 0.0, ValueError))
        made.add_edge("tick", name)
    made.add_edge([f"{number}" for number in range(len(kinds))], "join")
    made.add_conditional_edges("join", way, ["tick", fm.END])
    return made.compile(max_steps=9)


def came_to(app: Any, **options: Any) -> Any:
    """All that a run says of itself, but ids and seconds."""
    raised = None
    try:
        run = app.invoke({"n": 0, "seen": [], "log": []}, **options)
    except BaseException as error:
        run, raised = error.state_run, (type(error), str(error), getattr(error, "__notes__", None))
    failures = [(one.stage, type(one.error), one.attempts) for one in run.failures]
    stats = (run.stats.steps, run.stats.tasks, run.stats.retries)
    asked = [(one.id, one.value) for one in run.interrupts]
    return run.status, dict(run.state), run.step, run.frontier, asked, failures, stats, raised


@pytest.mark.parametrize(
    "kinds",
    [
        lambda: [says("a"), says("b")],
        lambda: [says("a"), fails_at_first(), says("b")],
        lambda: [fails, says("a"), fails],
        lambda: [says("a"), asks, says("b")],
        lambda: [asks, fails, fails_at_first()],
        lambda: [says("a"), ends(StopIteration)],
        lambda: [ends(GeneratorExit), says("a")],
        lambda: [says("a"), lambda state: {"n": 7}, lambda state: {"n": 8}],
        lambda: [says("a"), lambda state: fm.Command(goto="2", update={"log": ["c"]}), says("d")],
        lambda: [lambda state: [fm.Send("1", {"n": i}) for i in range(3)], says("s")],
        lambda: [says("a"), lambda state: {"log": 3}],
    ],
)
@pytest.mark.parametrize("way", [again, bad_way])
def test_who_listens_changes_nothing_of_what_it_comes_to(kinds: Any, way: Any) -> None:
    heard: list[Any] = []
    silent = came_to(graph(kinds(), way))
    assert came_to(graph(kinds(), way), sinks=[heard.append]) == silent
    assert heard


def test_they_go_straight_on_while_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_other_way(self: Any, *args: Any) -> Any:
        raise AssertionError(f"the long way: {args}")

    monkeypatch.setattr(runs.Run, "_commit", no_other_way)
    run = graph([says("a"), says("b")]).invoke({"n": 0, "seen": [], "log": []})
    assert run["log"] == ["a1", "b1", "a2", "b2", "a3", "b3"] and run["seen"] == [0, 1]
    with pytest.raises(AssertionError, match="the long way"):
        graph([says("a")]).invoke({"n": 0, "seen": [], "log": []}, sinks=[print])


def test_who_comes_while_a_step_runs_hears_it_from_the_next_task_on() -> None:
    heard: list[Any] = []
    subscribed: list[Any] = []

    def listens(state: Any) -> None:
        if not subscribed:
            subscribed.append(fm.subscribe(heard.append, detail="items"))

    run = graph([says("a"), listens, says("b")]).invoke({"n": 2, "seen": [], "log": []})
    subscribed[0]()
    told = [event["data"] for event in heard if event["kind"] == "progress"][-1]
    assert (told["step"], told["done"], told["failed"]) == (run.step, run.stats.tasks, 0)
    said = [(event["kind"], event["name"]) for event in heard if event["source"] == "stategraph"]
    begun = [name for kind, name in said if kind == "task_started"]
    assert begun == ["2", "join"]
    assert [kind for kind, _ in said].count("step_finished") == 2


def test_who_comes_meanwhile_takes_no_tries_of_a_task() -> None:
    """A task of each step fails twice, and in the second somebody comes before it begins."""
    subscribed: list[Any] = []

    def listens(state: Any) -> None:
        if state["n"] == 2:
            subscribed.append(fm.subscribe(lambda event: None, detail="items"))

    run = graph([listens, fails_at_first()]).invoke({"n": 0, "seen": [], "log": []})
    subscribed[0]()
    assert run["log"] == ["tried 3"] * 3


@pytest.mark.parametrize("where", ["task", "way"])
def test_what_a_signal_handler_raises_leaves_a_whole_point(where: str) -> None:
    """In a task: it is that task's failure. After a step's tasks: none of them runs again."""
    calls: list[str] = []

    def raised(*args: Any) -> None:
        raise TimeoutError("now")

    def signalled(state: Any) -> Any:
        calls.append("signalled")
        if where == "task" and calls.count("signalled") == 1:
            signal.raise_signal(signal.SIGUSR1)
        return {"log": ["x"]}

    def way(state: Any) -> str:
        calls.append("way")
        if where == "way" and calls.count("way") == 1:
            signal.raise_signal(signal.SIGUSR1)
        return again(state)

    old = signal.signal(signal.SIGUSR1, raised)
    try:
        app = graph([says("a"), signalled], way)
        with app.open("s", input={"n": 2, "seen": [], "log": []}) as session:
            with pytest.raises(TimeoutError):
                session.run_until_complete()
            assert session.step_number == (1 if where == "task" else 2)
            run = session.run_until_complete()
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert run.status == "completed" and run["log"] == ["a3", "x"]
    assert calls.count("signalled") == (2 if where == "task" else 1)


def test_it_is_drained_after_a_step_and_killed_after_a_task() -> None:
    inside, go = threading.Event(), threading.Event()

    def waits(state: Any) -> Any:
        inside.set()
        assert go.wait(20)
        return {"log": ["waited"]}

    for end, log in (("stop", ["a1", "waited", "b1"]), ("kill", [])):
        inside.clear(), go.clear()
        handle = graph([says("a"), waits, says("b")]).start({"n": 0, "seen": [], "log": []})
        assert inside.wait(20)
        getattr(handle, end)()
        go.set()
        run = handle.result(20)
        assert run.status == {"stop": "drained", "kill": "killed"}[end]
        assert run["log"] == log and run.step == (2 if log else 1)
