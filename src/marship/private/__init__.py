"""Private inference: a server computes on what it cannot read."""
