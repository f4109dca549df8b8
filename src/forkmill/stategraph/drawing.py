"""A state graph as text and as a drawing.

Threads: any; pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import name_of
from .words import END, START

if TYPE_CHECKING:
    from .plan import Plan
    from .rules import Choice

__all__ = ["described", "mermaid"]


def described(plan: Plan) -> str:
    """Keys, nodes, where they run and where they lead, a line each."""
    lines = [f"{plan.name} ({plan.hash[:12]})", "keys"]
    for key in plan.schema.keys.values():
        folded = "" if key.reducer is None else f" folded by {name_of(key.reducer)}"
        lines.append(f"  {key.name}{folded}")
    lines.append("nodes")
    for name in (START, *plan.nodes):
        lines.append(f"  {name}{_where(plan, name)} -> {', '.join(_ways(plan, name)) or END}")
    return "\n".join(lines)


def _where(plan: Plan, name: str) -> str:
    node = plan.nodes.get(name)
    if node is None:
        return ""
    told = [str(node.context)]
    if node.timeout is not None:
        told.append(f"timeout {node.timeout:g} s")
    if node.retry is not None:
        told.append(f"{node.retry.attempts} attempts")
    if node.reads is not None:
        told.append(f"reads {', '.join(node.reads)}")
    return f" [{'; '.join(told)}]"


def _ways(plan: Plan, name: str) -> list[str]:
    paths = plan.paths
    ways = [target for _, target in paths.plain.get(name, ())]
    for choice in paths.chosen.get(name, ()):
        ways.append(f"{name_of(choice.fn)}({', '.join(_targets(choice))})")
    for join in paths.joined.get(name, ()):
        others = ", ".join(source for source in join.sources if source != name)
        ways.append(f"{join.target} with {others}" if others else join.target)
    node = plan.nodes.get(name)
    if node is not None and node.targets:
        ways.append(f"goto({', '.join(sorted(node.targets))})")
    return ways


def _targets(choice: Choice) -> list[str]:
    if choice.targets is None:
        return ["any"]
    return [
        target if answer == target else f"{answer!r}: {target}"
        for answer, target in choice.targets.items()
    ]


def mermaid(plan: Plan) -> str:
    """A flowchart: plain edges solid, choices and gotos dotted, joins by a dot."""
    ids = {name: f"n{number}" for number, name in enumerate((START, *plan.nodes, END))}
    lines = ["flowchart TD"]
    for name, ident in ids.items():
        text = {START: "start", END: "end"}.get(name, name)
        shape = f'(["{text}"])' if name in (START, END) else f'["{_escaped(text)}"]'
        lines.append(f"    {ident}{shape}")
    for source, target in plan.paths.edges:
        lines.append(f"    {ids[source]} --> {ids[target]}")
    for choice in plan.paths.choices:
        named = choice.targets or {name: name for name in plan.nodes}
        for answer, target in named.items():
            label = "" if answer == target else f'|"{_escaped(str(answer))}"|'
            lines.append(f"    {ids[choice.source]} -.->{label} {ids[target]}")
    for join in plan.paths.joins:
        dot = f"j{join.number}"
        lines.append(f"    {dot}((+))")
        lines += [f"    {ids[source]} --> {dot}" for source in join.sources]
        lines.append(f"    {dot} --> {ids[join.target]}")
    for node in plan.nodes.values():
        for target in sorted(node.targets or ()):
            lines.append(f"    {ids[node.name]} -.-> {ids[target]}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace('"', "#quot;").replace("<", "&lt;").replace(">", "&gt;")
