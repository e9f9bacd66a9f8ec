"""Trials of new versions, which the acceptor carries out."""

from dataclasses import asdict

from marship.engines.torchserve import acceptor
from marship.engines.torchserve.access import Access
from marship.engines.trials import TrialFigures, TrialOrder, TrialState, figures_of, merged
from marship.errors import UsageError
from marship.exchange.calls import Flow, Work


def renew_trial(access: Access, order: TrialOrder) -> Flow[list[TrialFigures]]:
    """Begin a trial, or let it go on, change or end it; see `engines.engine.Engine`.

    Raises:
        UsageError: The server is on another machine, or has no direct address.
        NotRunningError: No server runs.
        ServerError: The trial is refused.
    """
    if not access.is_local:
        raise UsageError(
            "a new version must be tried beside its server, got the address of another machine. "
            "Run it there."
        )
    if access.home.require_running().acceptor is None:
        raise UsageError(
            "a new version must be tried at the direct address, got a server without one. Start "
            "it without --no-direct."
        )
    question = {**asdict(order), "kind": "try"}
    answers = yield Work(lambda: acceptor.ask(access, [question]))
    return figures_of(answers)


def trials(access: Access) -> Flow[list[TrialState]]:
    """The trials that run; none where there is no acceptor to tell."""
    answers = yield Work(lambda: acceptor.ask(access, [{"kind": "ask trials"}]))
    return merged(TrialState.from_json(one) for told in answers for one in told["trials"])
