"""Serves a model on encrypted data: `marship package RUN --private he` packs it."""

from marship.serving.private.handler import EncryptedHandler


class Handler(EncryptedHandler):
    """The handler as it is: TorchServe wants one class defined in the handler's file."""
