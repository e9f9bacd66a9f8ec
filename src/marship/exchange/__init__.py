"""HTTP exchanges as plain data, and the transports that send them; independent of the engine."""
