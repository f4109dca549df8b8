"""The dashboard: a process of its own that looks at the runs of another one, over a Unix socket.

program                                            forkmill top PID
┌──────────────────────────────────────┐           ┌───────────────────────────────────┐
│ events ──▶ Scene ─┐                  │  socket   │                                   │
│ pools ──workers───┴▶ Server (thread) ├──────────▶│ Link ──▶ a scene ──▶ look ──▶ app │
│ runs  ◀──stop, kill──┘               │◀──────────┤            ▲            keys      │
└──────────────────────────────────────┘           │ Recording ─┘   procs: CPU, memory │
                                                   └───────────────────────────────────┘

place      where sockets are, and who may be at their ends
scene      what is known of all runs of a process, from its events
server     the program's side
link       the dashboard's side: a program, or a recording
look       a scene as lines of text, for any width and height
procs      what the system knows of processes
app        the only module that imports textual
launch     a dashboard on this terminal: ``handle.top()``, ``forkmill run --top``
"""
