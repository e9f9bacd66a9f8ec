"""The Python clients of the management and inference APIs, blocking and asyncio."""

from marship.client.clients import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
