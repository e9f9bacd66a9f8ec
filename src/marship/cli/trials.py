"""Trying out a new version with real requests: shadow and canary."""

from typing import TYPE_CHECKING, Annotated

import typer

from marship import console
from marship.cli.address import on_server
from marship.cli.app import ModelName, app
from marship.cli.report import Report, reported
from marship.operate.trial.settings import CanarySettings, ShadowSettings
from marship.settings import flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marship.client.address import Address
    from marship.engines.trials import TrialFigures, TrialState
    from marship.operate.trial.run import Tried

PANEL = "Models on the server"
NewVersion = Annotated[str, typer.Argument(help="the new version, registered beside the default")]


@app.command(rich_help_panel=PANEL)
@on_server("management", needs_both=True)
@reported
@flags(ShadowSettings)
def shadow(
    name: ModelName, version: NewVersion, settings: ShadowSettings, *, address: "Address"
) -> Report:
    """Send a new version copies of requests and compare its responses, which no client gets."""
    from marship.cli import steps
    from marship.operate.trial import run

    with address.client() as client, steps.tried(f"{name} {version} as a shadow") as watcher:
        tried = run.shadow(client, name, version, settings, watcher)
    is_fine = tried.judgement.outcome == "fine"
    text = (
        f"{name} {version} keeps to the limits; {tried.default} is the default"
        if is_fine
        else f"{name} {version}: {tried.judgement.reason}"
    )
    return _report(tried, text, is_failure=not is_fine)


@app.command(rich_help_panel=PANEL)
@on_server("management", needs_both=True)
@reported
@flags(CanarySettings)
def canary(
    name: ModelName, version: NewVersion, settings: CanarySettings, *, address: "Address"
) -> Report:
    """Give a growing share of clients a new version; it becomes the default, or nobody gets it."""
    from marship.cli import steps
    from marship.operate.trial import run

    with address.client() as client, steps.tried(f"{name} {version} as a canary") as watcher:
        tried = run.canary(client, name, version, settings, watcher)
    text = (
        f"{name} {version} is the default"
        if tried.is_promoted
        else f"{name} {tried.default} stays the default, since of {version} "
        f"{tried.judgement.reason}"
    )
    return _report(tried, text, is_failure=not tried.is_promoted)


def _report(tried: "Tried", text: str, *, is_failure: bool) -> Report:
    fields = {
        "name": tried.name,
        "version": tried.version,
        "default_version": tried.default,
        "is_promoted": tried.is_promoted,
        "outcome": tried.judgement.outcome,
        "reason": tried.judgement.reason,
        "steps": [{"share": one.share, **figure_fields(one.figures)} for one in tried.steps],
    }

    def say() -> None:
        console.out.print(text, markup=False, soft_wrap=True)

    return Report(fields, say, is_failure)


def figure_fields(figures: "TrialFigures") -> dict[str, object]:
    """What came of a share, for programs."""
    from marship.operate.trial.judgement import milliseconds

    arms = {
        name: {
            "requests": arm.requests,
            "errors": arm.errors,
            "p50_ms": milliseconds(arm.took, 0.5),
            "p99_ms": milliseconds(arm.took, 0.99),
        }
        for name, arm in (("default", figures.default), ("new", figures.new))
    }
    named = (
        "asked",
        "taken",
        "absent",
        "dropped",
        "compared",
        "differing",
        "unreadable",
        "unlike",
        "incomparable",
    )
    counts = {name: getattr(figures, name) for name in named}
    return {**counts, "largest": figures.largest, "examples": figures.examples, **arms}


def state_fields(states: "Sequence[TrialState]") -> list[dict[str, object]]:
    """Trials that run."""
    return [
        {
            "name": one.order.model,
            "version": one.order.version,
            "default_version": one.order.default,
            "kind": kind(one),
            "share": one.order.share,
            **figure_fields(one.figures),
        }
        for one in states
    ]


def kind(state: "TrialState") -> str:
    """What a trial is called."""
    return "canary" if state.order.gives_new else "shadow"


def show(states: "Sequence[TrialState]") -> None:
    """Print a line for each trial that runs."""
    from marship.operate.trial.judgement import summary

    for one in states:
        order = one.order
        text = f"{order.model} {order.version} is on trial as a {kind(one)} of {order.default}, "
        text += f"share {order.share:.4g}: {summary(one.figures)}"
        console.out.print(text, markup=False, soft_wrap=True)
