"""What is fed by the stream of events, for people to look at.

    text       what comes from elsewhere, as text that can be shown anywhere
    board      what is known of a run that goes on
    progress   a sink: how far runs are, on a terminal, in a notebook, as lines
    report     a sink: one HTML file about a run
    spans      a sink: OpenTelemetry
    trace      a sink: for Perfetto and chrome://tracing
    top        the dashboard, a process of its own

Nothing here is loaded before somebody wants to see something.
"""
