"""The handler that serves any ONNX model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claims import claiming
from marship.contract import Arrays
from marship.errors import LoadError
from marship.packaging.step import PackageSettings, package
from marship.serving.formats import codec
from marship.serving.handler import OnnxHandler, Reply, Request
from marship.serving.hosts.torchserve.entry import MAX_RESPONSE_ENV
from marship.serving.model import watch
from marship.trust import archive as archives
from models import centring, row_filter, wide
from workers import Worker, load_module

Start = Callable[[Path, type], Worker]


@pytest.fixture(scope="module")
def lookup_mar(lookup_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lookup model, packed without a recipe."""
    return package(lookup_onnx, PackageSettings(model_store=tmp_path_factory.mktemp("store")))


@pytest.fixture
def lookup_worker(lookup_mar: Path, worker: Start) -> Worker:
    """A worker of the lookup model."""
    return worker(lookup_mar, load_module("onnx_handler").Handler)


def test_a_batch_of_32_with_3_bad_gives_29_responses(lookup_worker: Worker) -> None:
    """Malformed JSON, a wrong type and an id that is refused get 400; the rest their sums."""
    rows = [{"body": json.dumps({"ids": [[i % 10, 1]]}).encode()} for i in range(32)]
    rows[3] = {"body": b'{"ids": [[1'}
    rows[17] = {"body": b'{"ids": [[0.5]]}'}
    rows[30] = {"body": b'{"ids": [[99]]}'}
    answers = lookup_worker(*rows, content_type="application/json")
    bad = {3: (400, "malformed"), 17: (400, "invalid_input"), 30: (400, "invalid_input")}
    for i, answer in enumerate(answers):
        assert answer.headers["content-type"] == "application/json"
        if i in bad:
            assert (answer.status, answer.json()["code"]) == bad[i]
        else:
            assert (answer.status, answer.json()) == (200, {"total": [i % 10 + 1.0]})


def test_a_form_with_too_many_fields_is_413(lookup_worker: Worker) -> None:
    """What the transport did not keep is refused with the limit; its neighbour is answered."""
    most = lookup_worker.handler.max_fields
    good = Request(b'{"ids": [[1]]}', "application/json", field_count=most)
    (refused, answered), _ = lookup_worker.handler.reply([Request(b"", field_count=most + 1), good])
    assert (refused.status, json.loads(refused.body)["code"]) == (413, "too_large")
    assert f"at most {most} fields, got {most + 1}" in json.loads(refused.body)["message"]
    assert answered.status == 200


def test_responses_carry_server_timing(lookup_worker: Worker) -> None:
    """Each answer's header gives milliseconds for decode, infer and encode."""
    (answer,) = lookup_worker({"body": b'{"ids": [[1]]}'})
    parts = [part.strip().split(";dur=") for part in answer.headers["Server-Timing"].split(",")]
    assert [name for name, _ in parts] == ["decode", "infer", "encode"]
    assert all(float(duration) > 0 for _, duration in parts)


def test_a_client_error_says_what_to_send(lookup_worker: Worker) -> None:
    """A 4xx answer has a stable code, a message, and the inputs that the model expects."""
    (answer,) = lookup_worker({"body": b'{"idz": [[1]]}'}, content_type="application/json")
    assert answer.status == 400
    assert answer.json()["expects"] == ["ids: int64[batch, length]"]
    assert "without ids" in answer.json()["message"]


def test_a_refused_run_tells_a_reference_and_no_more(
    lookup_worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    """What ONNX Runtime said goes to the log; the client gets the reference that finds it."""
    (answer,) = lookup_worker({"body": b'{"ids": [[99]]}'})
    assert (answer.status, answer.json()["code"]) == (400, "invalid_input")
    assert answer.json()["expects"] == ["ids: int64[batch, length]"]
    reference = answer.json()["message"].rstrip(".").split()[-1]
    assert reference in caplog.text
    assert "Gather" in caplog.text
    assert "Gather" not in answer.body.decode()


def test_npy_over_a_multipart_field(lookup_worker: Worker) -> None:
    """A request with one form field, whatever its name, is that field."""
    (answer,) = lookup_worker({"data": codec.write_npy(np.array([[4, 5]]))})
    assert answer.headers["content-type"] == "application/x-npy"
    assert codec.read_npy(answer.body).tolist() == [9.0]


def test_a_response_over_the_limit_is_413(
    lookup_mar: Path, worker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that would cut the worker off is refused before it is sent."""
    monkeypatch.setenv(MAX_RESPONSE_ENV, "20")
    small = worker(lookup_mar, OnnxHandler)
    fits, too_large = small(
        {"body": b'{"ids": [[1]]}'}, {"body": b'{"ids": [[1], [2], [3], [4], [5]]}'}
    )
    assert fits.status == 200
    assert (too_large.status, too_large.json()["code"]) == (413, "too_large")


def test_a_bug_in_one_handlers_step_stays_with_its_request(lookup_mar: Path, worker: Start) -> None:
    """An exception of a handler of one's own is a 500 for that request alone."""

    class Buggy(OnnxHandler):
        def decode(self, request: Request) -> tuple[Arrays, Any]:
            """Fail on one body."""
            if request.body == b"decode":
                raise KeyError("secret")
            return super().decode(request)

        def encode(self, outputs: Arrays, state: Any) -> Reply:
            """Fail on one answer."""
            if outputs["total"][0] == 9:
                raise ZeroDivisionError("secret")
            return super().encode(outputs, state)

    answers = worker(lookup_mar, Buggy)(
        {"body": b"decode"}, {"body": b'{"ids": [[9]]}'}, {"body": b'{"ids": [[1]]}'}
    )
    assert [answer.status for answer in answers] == [500, 500, 200]
    assert b"secret" not in answers[0].body + answers[1].body


@pytest.mark.parametrize(
    "returned", [None, {"total": 1}, b"9", "9", Reply("9"), Reply(None), [Reply(b"9")]], ids=repr
)
def test_what_encode_must_not_return_stays_with_its_request(
    lookup_mar: Path, worker: Start, returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with a reference for that request; the log says what encode must return."""

    class Odd(OnnxHandler):
        def encode(self, outputs: Arrays, state: Any) -> Reply:
            """Not a reply, for one request."""
            return returned if outputs["total"][0] == 9 else super().encode(outputs, state)

    answers = worker(lookup_mar, Odd)({"body": b'{"ids": [[9]]}'}, {"body": b'{"ids": [[1]]}'})
    assert [answer.status for answer in answers] == [500, 200]
    assert answers[0].json()["code"] == "internal"
    assert "encode must return a Reply whose body is bytes" in caplog.text


@pytest.mark.parametrize("content_type", ["application/json", ""])
def test_a_response_that_shapes_say_is_too_large_is_not_computed(
    tmp_path: Path, worker: Start, monkeypatch: pytest.MonkeyPatch, content_type: str
) -> None:
    """It is 413 with the way out in every form and on both paths; what fits beside it is answered.

    No call of the model has more rows than a response could hold.
    """
    monkeypatch.setenv(MAX_RESPONSE_ENV, "20000")
    archive = package(wide(tmp_path / "wide.onnx", 1000), PackageSettings(model_store=tmp_path))
    served = worker(archive, OnnxHandler)
    calls: list[int] = []
    run = served.handler.session.run

    def counted(inputs: Arrays) -> Arrays:
        calls.append(len(inputs["x"]))
        return run(inputs)

    monkeypatch.setattr(served.handler.session, "run", counted)
    served.handler._batcher.run = counted
    entry = {"name": "x", "datatype": "UINT8", "shape": [100], "data": [1] * 100}
    bodies = [b"[1, 2]", json.dumps([1] * 100).encode(), b'{"x": [3]}']
    bodies.append(json.dumps({"inputs": [entry]}).encode())
    answers = served(*({"body": body} for body in bodies), content_type=content_type)
    assert [answer.status for answer in answers] == [200, 413, 200, 413]
    assert "at most 20000 bytes" in answers[1].json()["message"]
    assert "raise max_response_size" in answers[1].json()["message"]
    assert sum(calls) == 3
    (large,) = served({"body": codec.write_npy(np.ones(100, np.uint8))})
    assert (large.status, sum(calls)) == (413, 3)


def test_an_archive_bounds_the_batch_by_what_a_response_holds(tmp_path: Path) -> None:
    """The bound stands in the contract, and so in what inspect shows."""
    archive = package(wide(tmp_path / "wide.onnx", 1000), PackageSettings(model_store=tmp_path))
    contract = archives.read(archive).contract
    assert contract is not None
    assert contract.bounds == {"n": (1, (16 << 20) // 4000)}


def _with_the_inputs_rows(contract: dict[str, Any]) -> None:
    """State that the output has the input's rows, and that they may be joined."""
    contract["batch_axis"] = "n"
    contract["outputs"][0]["shape"][0] = "n"


@pytest.mark.parametrize("content_type", ["application/json", ""])
def test_no_request_gets_anothers_rows_from_a_filter(
    tmp_path: Path, worker: Start, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On the fast path and on the slow one a filter's rows go to whom they belong."""
    archive = package(row_filter(tmp_path / "filter.onnx"), PackageSettings(model_store=tmp_path))
    served = worker(claiming(archive, _with_the_inputs_rows), OnnxHandler)
    rows = [[[1, 1]], [[-1, 2]], [[3, 3], [-3, 3]], [[4, 4]]]
    wanted = [[[1, 1]], [], [[3, 3]], [[4, 4]]]
    for _ in range(2):
        answers = served(
            *({"body": json.dumps(r).encode()} for r in rows), content_type=content_type
        )
        assert [answer.json() for answer in answers] == wanted
    assert "came as [3, 2]" in caplog.text


@pytest.mark.parametrize("content_type", ["application/json", ""])
def test_a_worker_finds_out_that_a_model_mixes_rows(
    tmp_path: Path, worker: Start, content_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both paths a row of a joined call is repeated alone; then each request is run so."""
    monkeypatch.setattr(watch, "DEFAULT_SHARE", 1)
    archive = package(centring(tmp_path / "centring.onnx"), PackageSettings(model_store=tmp_path))
    served = worker(claiming(archive, lambda c: c.update(batch_axis="n")), OnnxHandler)
    rows = [{"body": b"[[1, 2]]"}, {"body": b"[[3, 6]]"}]
    joined = [answer.json() for answer in served(*rows, content_type=content_type)]
    assert joined == [[[-1, -2]], [[1, 2]]]
    watcher = served.handler._watch
    watcher.repeat(watcher._waiting.get_nowait())
    alone = [answer.json() for answer in served(*rows, content_type=content_type)]
    assert alone == [[[0, 0]], [[0, 0]]]


@pytest.mark.parametrize("content_type", ["application/json", ""])
def test_an_id_outside_of_the_table_is_400_with_the_range(
    lookup_mar: Path, worker: Start, content_type: str
) -> None:
    """-1 and 10 of ids 0 to 9, on both paths; the neighbours get their sums."""

    def change(claimed: dict[str, Any]) -> None:
        claimed["inputs"][0] |= {"value_range": [0, 9], "shape": ["batch", 2]}

    served = worker(claiming(lookup_mar, change), OnnxHandler)
    ids = ([1, 2], [-1, 3], [3, 10], [9, 0])
    answers = served(
        *({"body": json.dumps({"ids": [pair]}).encode()} for pair in ids), content_type=content_type
    )
    assert [answer.status for answer in answers] == [200, 400, 400, 200]
    assert [answers[0].json(), answers[3].json()] == [{"total": [3.0]}, {"total": [9.0]}]
    for answer, value in zip(answers[1:3], (-1, 10), strict=True):
        assert answer.json()["message"] == f"ids must hold values from 0 to 9, got {value}."


@pytest.mark.parametrize("value", [0, -1, True, "9", 1.5])
def test_a_limit_of_fields_that_cannot_be_meant_fails_the_load(
    lookup_mar: Path, worker: Start, value: object
) -> None:
    """model-config.yaml may set max_form_fields under marship: to a whole number from 1."""

    class Limited(OnnxHandler):
        def initialize(self, context: Any) -> None:
            """Set it as the archive's own file would."""
            context.model_yaml_config["marship"]["max_form_fields"] = value
            super().initialize(context)

    with pytest.raises(LoadError, match=r"marship\.max_form_fields .* got"):
        worker(lookup_mar, Limited)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"other"), "SHA-256"),
        (lambda f: (f / "model.onnx").unlink(), "must be in the archive"),
        (lambda f: (f / "golden.npz").unlink(), "must replay"),
        (lambda f: (f / "contract.json").write_text("{}"), "must be a contract"),
        (lambda f: (f / "contract.json").unlink(), "must be in the archive"),
    ],
)
def test_a_damaged_archive_is_not_served(
    lookup_mar: Path, worker: Start, damage: Callable[[Path], object], words: str
) -> None:
    """A worker refuses to load what is not the packaged model, and says which part it is."""

    class Damaged(OnnxHandler):
        def initialize(self, context: Any) -> None:
            """Damage the extracted archive first."""
            damage(Path(context.system_properties["model_dir"]))
            super().initialize(context)

    with pytest.raises(LoadError, match=words):
        worker(lookup_mar, Damaged)


def test_tensors_that_a_handler_made_are_no_fault_of_the_client(
    lookup_mar: Path, worker: Start
) -> None:
    """A run that fails on what a handler of one's own decoded is the server's."""

    class Own(OnnxHandler):
        def decode(self, request: Request) -> tuple[Arrays, Any]:
            """Make an id that the model refuses of any other text."""
            inputs, state = super().decode(Request(b'{"ids": [[1]]}', "application/json"))
            return ({"ids": np.array([[99]])} if request.body != b"good" else inputs), state

    failed, answered = worker(lookup_mar, Own)({"body": b"bad"}, {"body": b"good"})
    assert (failed.status, failed.json()["code"], answered.status) == (500, "internal", 200)
