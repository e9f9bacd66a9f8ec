"""Operations: rollouts, declared state, and the proxy in front of a server."""
