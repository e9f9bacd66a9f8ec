"""Private inference in a worker: it computes on what it cannot read."""
