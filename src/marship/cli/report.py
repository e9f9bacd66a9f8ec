"""The result of a command: human-readable, or with `--json` machine-readable.

docs/json.md lists the fields; a test holds it against what is printed.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from marship import console

if TYPE_CHECKING:
    from marship.client.clients import Model, ModelStatus
    from marship.engines.home import Home, ServerRecord
    from marship.operate.state import Change
    from marship.trust.archive import Archive

Fields = dict[str, Any]

_FLAG = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--json", help="print JSON, and all else to standard error")
    ],
)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a command.

    Attributes:
        fields: Of the JSON object.
        show: Prints the same for a person.
        is_failure: Whether the command exits with 1 although it has a result.
    """

    fields: Mapping[str, Any]
    show: Callable[[], None]
    is_failure: bool = False


def reported(function: Callable[..., Report]) -> Callable[..., Any]:
    """Give a command that returns a report the flag `--json`, and print the report."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def command(*, as_json: bool, **given: Any) -> None:  # noqa: ANN401  Typer calls it by name
        with console.as_notes(as_json):
            report = function(**given)
        if as_json:
            console.write_json(report.fields)
        else:
            report.show()
        if report.is_failure:
            raise typer.Exit(1)

    command.__annotations__ = {**function.__annotations__, "return": None}
    kept = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*kept, _FLAG], return_annotation=None
    )
    return command


def status_fields(status: "ModelStatus") -> Fields:
    """One version of a model on the server."""
    return {**asdict(status), "ready": status.ready}


def model_fields(model: "Model") -> Fields:
    """A model with all its versions."""
    return {
        "name": model.name,
        "default_version": model.default_version,
        "versions": [status_fields(status) for status in model.versions],
    }


def server_fields(record: "ServerRecord", home: "Home") -> Fields:
    """Where a server listens, and where its files lie."""
    return {
        "inference_url": record.inference_url,
        "direct_url": record.direct_url,
        "grpc_address": record.grpc_address,
        "management_url": record.management_url,
        "metrics_url": record.metrics_url,
        "prometheus_url": record.prometheus_url,
        "model_store": record.model_store,
        "trust": record.trust,
        "seal_key": record.seal_key,
        "key_file": str(home.key_file),
        "logs": str(home.logs),
        "pid": record.pid,
    }


def change_fields(changes: "Sequence[Change]") -> Fields:
    """What a state file changes, or changed."""
    named = ("kind", "name", "version", "detail")
    return {"changes": [{name: getattr(change, name) for name in named} for change in changes]}


def archive_fields(archive: "Archive") -> Fields:
    """Everything that an archive says about itself."""
    fields = {**asdict(archive), "path": str(archive.path), "sealed": archive.sealed}
    del fields["plain"]  # its files stand among the members
    return fields
