"""Party 0 of a model that three parties share: `marship package RUN --private mpc`."""

from marship.serving.private.mpc.handler import PartyHandler


class Handler(PartyHandler):
    """The party as it is: TorchServe wants one class defined in the handler's file."""
