"""State graphs: one state, nodes that return updates, supersteps that are stored."""
