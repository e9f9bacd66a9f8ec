"""Arguments of Python callers are checked before anything is done with them."""

import asyncio
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import marship
from marship.arguments import MOST_S, checked
from marship.client.connected import file_name
from marship.errors import MarshipError, UsageError

BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5, "5", b"5", None, True, [], {}, 1e300]
BAD_TEXTS = ["a\0b", 5, 1.0, True, [], {}, b"bytes"]


@checked
def act(
    path: str | Path, name: str, *, count: int = 1, timeout_s: float = 1.0, free: Any = None
) -> tuple[Any, ...]:
    """What it is given."""
    return path, name, count, timeout_s, free


def test_values_come_as_their_annotations_say() -> None:
    """Texts as paths, NumPy's numbers as Python's; what has no known type as it is."""
    given_ = act("a", "b", count=np.int64(3), timeout_s=np.float32(0.5), free=object)
    assert given_ == (Path("a"), "b", 3, 0.5, object)
    assert [type(value) for value in given_[2:4]] == [int, float]
    assert act(Path("a"), name="b", timeout_s=2)[3] == 2.0


@checked
def take(
    *,
    integer: int = 1,
    real: float = 1.0,
    switch: bool = False,
    side: Literal["left", "right"] = "left",
    call: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """What it is given."""
    return {"integer": integer, "real": real, "switch": switch, "side": side, "call": call}


NUMBERS = {  # of libraries, by what Python's own would be
    int: [np.int8, np.uint64, np.array, torch.tensor],
    float: [np.float16, np.float64, np.longdouble, np.array, torch.tensor, Fraction, Decimal],
    bool: [np.bool_, np.array, torch.tensor],
}
OWN = st.booleans() | st.integers(-100, 100) | st.integers(-400, 400).map(lambda n: n / 4)


def outcome(name: str, value: Any) -> tuple[type, Any] | str:
    """The type and the value that come of an argument, or the message up to the value."""
    try:
        found = take(**{name: value})[name]
    except UsageError as error:
        return str(error).partition(", got")[0]
    return type(found), found


@given(own=OWN, name=st.sampled_from(["integer", "real", "switch"]), data=st.data())
def test_numbers_of_libraries_are_treated_like_pythons(
    own: Any, name: str, data: st.DataObject
) -> None:
    """Also booleans, and arrays and tensors without dimensions: accepted or refused likewise."""
    make = data.draw(st.sampled_from(NUMBERS[type(own)]))
    if isinstance(own, int) and make is np.uint64:
        own = abs(own)
    assert outcome(name, make(own)) == outcome(name, own)


@pytest.mark.parametrize(
    "value",
    [
        *(np.timedelta64(5, "ns"), np.datetime64(5, "ns"), np.complex64(1), np.array("5")),
        *(np.array([1]), torch.tensor([1.5]), torch.empty((), device="meta"), np.str_("1"), b"1"),
        *(np.ma.masked, np.ma.array(5, mask=True), memoryview(b"5")),
        *(10**5000, -(10**5000), np.zeros((3, 3)), "a\nb", Decimal("nan"), np.float32("inf")),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_what_is_no_number_is_named_in_one_line(value: Any) -> None:
    """A time span, text, several numbers, or an integer that Python does not even write."""
    for name in ("integer", "real", "switch"):
        if not (name == "integer" and isinstance(value, int) and value > 0):
            message = outcome(name, value)
            assert isinstance(message, str)
            assert message.startswith(f"{name} must be ")
            with pytest.raises(UsageError, match=r"^[^\n]{1,200}$"):
                take(**{name: value})


def test_a_scalar_of_any_library_is_a_number() -> None:
    """What has no dimensions and an index, as TensorFlow's have, and no `item`."""

    class Scalar:
        ndim = 0

        def __index__(self) -> int:
            return 3

    assert act("a", "b", count=Scalar(), timeout_s=Scalar())[2:4] == (3, 3.0)


@pytest.mark.parametrize(
    ("name", "value"), [("call", 5), ("side", "up"), ("side", []), ("side", np.zeros(2))], ids=str
)
def test_callables_and_choices_are_checked(name: str, value: Any) -> None:
    """Before they are called, or looked up."""
    with pytest.raises(UsageError, match=f"^{name} must be (of type Callable|one of left, right),"):
        take(**{name: value})
    given_ = take(call=print, side="right")
    assert (given_["call"], given_["side"]) == (print, "right")


class _OddPath:
    """A path whose text is none."""

    def __fspath__(self) -> str:
        return 5  # type: ignore[return-value]

    def __repr__(self) -> str:
        return "odd"


@contextmanager
def _no_text_paths(folder: Path) -> Iterator[list[Any]]:
    """Paths in bytes, and what claims to be one."""
    (folder / "file").touch()
    with os.scandir(os.fsencode(folder)) as entries:
        yield [*entries, _OddPath()]


def test_paths_in_bytes_are_refused(tmp_path: Path) -> None:
    """As bytes themselves are."""
    with _no_text_paths(tmp_path) as values:
        for value in values:
            for use in (
                *(marship.Client, marship.export, marship.optimize, marship.package),
                *(marship.check, lambda path: marship.PackageSettings(handler=path)),
                *(lambda path: marship.PackageSettings(asset=path),),
                *(lambda path: marship.PackageSettings(asset=[path]),),
                lambda path: act("a", path),
            ):
                with pytest.raises(UsageError, match=r"must be of type \w+, got "):
                    use(value)


def test_empty_paths_are_refused_as_they_were_given() -> None:
    """To pathlib they are the current folder, of which an error would tell."""
    for use in (
        *(marship.Client, marship.export, marship.optimize, marship.package, marship.check, act),
        lambda path: marship.PackageSettings(handler=path),
        lambda path: marship.Client("home").register(path),
    ):
        with pytest.raises(UsageError, match=r"must name a file or folder, got ''\."):
            use("")


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["count", "timeout_s"])
def test_numbers_are_finite_and_not_negative(name: str, value: Any) -> None:
    """One line that names the argument; longer times than clocks have are refused as well."""
    with pytest.raises(UsageError, match=f"^{name} must be "):
        act("a", "b", **{name: value})
    with pytest.raises(UsageError, match="timeout_s must be at most"):
        act("a", "b", timeout_s=MOST_S + 1)
    with pytest.raises(UsageError, match="count must be of type int"):
        act("a", "b", count=1.5)


@pytest.mark.parametrize("value", [*BAD_TEXTS, None], ids=repr)
def test_texts_are_text(value: Any) -> None:
    """For paths, too; where None is allowed it is in the annotation."""
    for arguments in ((value, "b"), ("a", value)):
        with pytest.raises(UsageError, match="must be "):
            act(*arguments)


@given(name=st.text(max_size=600) | st.lists(st.text(max_size=255)).map("/".join))
@example(name="a/" * 2050)
def test_any_text_is_a_path_or_refused(name: str) -> None:
    """What the system would not take is a usage error."""
    try:
        path = act(name, "b")[0]
    except UsageError:
        return
    assert path.exists() in (True, False)


CLIENT_NUMBERS = ["timeout_s", "retry_s", "max_response_bytes"]


@pytest.mark.parametrize("kind", [marship.Client, marship.AsyncClient])
@pytest.mark.parametrize("name", CLIENT_NUMBERS)
@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
def test_a_client_refuses_numbers_that_are_none(kind: Any, name: str, value: Any) -> None:
    """When it is made, not at its first call."""
    with pytest.raises(UsageError, match=name):
        kind(**{name: value})


@pytest.mark.parametrize("value", BAD_TEXTS, ids=repr)
@pytest.mark.parametrize("name", ["home", "inference_url", "management_token", "ca", "model_store"])
def test_a_client_refuses_texts_that_are_none(name: str, value: Any) -> None:
    """The same of its addresses, tokens and paths."""
    with pytest.raises(UsageError, match=name):
        marship.Client(**{name: value})


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("scale", ("tiny", 1.5), {}),
    ("scale", ("tiny", "2"), {}),
    ("scale", ("tiny", -1), {}),
    ("scale", ("tiny", 1), {"timeout_s": math.nan}),
    ("register", (5,), {}),
    ("register", ("tiny.mar",), {"max_batch_delay_ms": math.nan}),
    ("register", ("tiny.mar",), {"batch_size": "1"}),
    ("register", ("tiny.mar",), {"batch_size": 0}),
    ("register", ("tiny.mar",), {"batch_size": 0, "profile": "latency"}),
    ("register", ("tiny.mar",), {"on_wait": 5}),
    ("has", ([],), {}),
    ("has", ("inferences",), {}),
    ("describe", ("tiny", 1.0), {}),
    ("describe", (None,), {}),
    ("predict", (None, [[1]]), {}),
    ("predict", ("tiny", [[1]]), {"version": 1.0}),
    ("unregister", (5,), {}),
    ("withdraw", ("tiny",), {}),
]


@pytest.mark.parametrize(("method", "args", "kwargs"), CALLS, ids=map(str, CALLS))
def test_calls_are_refused_before_anything_is_sent(
    method: str, args: tuple[Any, ...], kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """There is no server: whoever tried to reach one would raise another error."""
    with pytest.raises(UsageError, match=" must be "), marship.Client(tmp_path) as client:
        getattr(client, method)(*args, **kwargs)

    async def call() -> None:
        async with marship.AsyncClient(tmp_path) as client:
            await getattr(client, method)(*args, **kwargs)

    with pytest.raises(UsageError, match=" must be "):
        asyncio.run(call())


def test_an_archive_of_a_remote_server_is_named_by_its_local_copy(tmp_path: Path) -> None:
    """A path elsewhere stays one, which the server's engine refuses."""
    client = marship.Client(management_url="http://127.0.0.1:9", model_store=tmp_path / "copies")
    for path, name in {
        "tiny.mar": "tiny.mar",
        "copies/tiny.mar": "copies/tiny.mar",
        tmp_path / "copies" / "tiny.mar": "tiny.mar",
        tmp_path / "copies" / ".." / "copies" / "tiny.mar": "tiny.mar",
        tmp_path / "tiny.mar": str(tmp_path / "tiny.mar"),
    }.items():
        assert file_name(client.engine, Path(path)) == name


STEPS: list[tuple[str, tuple[Any, ...]]] = [
    *[(step, (value,)) for step in ("export", "optimize", "package", "check") for value in (
        "a\0.mar", "a" * 400, "a/" + "b" * 400, 5, None, b"bytes", "\ud800",
    )],
    ("package", ("tiny.onnx", marship.ExportSettings())),
    ("package", ("tiny.onnx", {})),
    ("package", ("tiny.onnx", "settings")),
    ("export", ("runs/tiny", marship.PackageSettings())),
    ("optimize", ("runs/tiny", marship.PackageSettings())),
]  # fmt: skip


@pytest.mark.parametrize(("step", "args"), STEPS, ids=map(repr, STEPS))
def test_steps_refuse_what_they_cannot_use(step: str, args: tuple[Any, ...]) -> None:
    """Only errors of marship leave the public functions."""
    with pytest.raises(MarshipError, match=" must "):
        getattr(marship, step)(*args)


def test_a_model_store_that_is_a_file_is_a_usage_error(linear_onnx: Path, tmp_path: Path) -> None:
    """Whatever is in its place stays."""
    store = tmp_path / "store"
    store.write_text("kept")
    with pytest.raises(UsageError, match="A file stands where a folder must"):
        marship.package(linear_onnx, marship.PackageSettings(model_store=store, name="x"))
    assert store.read_text() == "kept"
