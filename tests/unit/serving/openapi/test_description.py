"""What workers say of their models: of all handlers, of broken ones, and of sealed models."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from directly import service
from marship.contract import Contract, TensorSpec
from marship.operate import interfaces
from marship.serving.formats.golden import GoldenRequest
from marship.serving.handler import OnnxHandler
from marship.serving.hosts.direct.heads import Head
from marship.serving.hosts.direct.seats import ModelState, Seat, Seats
from marship.serving.hosts.direct.server_replies import ServerReplies
from marship.serving.openapi import description, tensors, validity
from marship.serving.openapi.document import ServedModel, document
from marship.serving.openapi.interface import BodyForm, Interface
from marship.serving.private.handler import EncryptedHandler
from marship.serving.private.mpc.handler import PartyHandler
from marship.serving.texts import answers
from workers import load_module

ASKED = Head("GET", b"/openapi.json", {})


class Broken(OnnxHandler):
    """A handler whose declaration fails."""

    def interface(self) -> Interface:
        """Fail."""
        raise KeyError("a mistake")


class Silent(OnnxHandler):
    """A handler with requests of its own, which it does not declare."""

    def decode(self, request: Any) -> Any:
        """As its base class does."""
        return super().decode(request)

    def advice(self) -> object:
        """What to send."""
        return "ten numbers"


def described(kind: type[OnnxHandler], folder: Path) -> dict[str, Any]:
    """What a worker with a handler says."""
    found: dict[str, Any] = json.loads(service(folder, kind=kind).description())
    validate(document([ServedModel("m", "1", True, True, found)], "1"))
    return found


def test_a_model_of_an_earlier_archive(tmp_path: Path) -> None:
    """Its tensors, limits and a golden row, whose response is the model's."""
    found = described(OnnxHandler, tmp_path / "m")
    assert [one["shape"] for one in found["inputs"]] == [["batch", 10]]
    assert found["limits"]["timeout_s"] == 60
    (given,) = [one for one in found["requests"] if one["title"] == "the input"]
    (example,) = given["examples"].values()
    Draft202012Validator(given["schema"]).validate(example)
    assert len(example) == 1


def test_a_mistake_in_a_declaration_keeps_no_model_from_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is described as any bytes, and the log has the reason."""
    assert described(Broken, tmp_path / "m")["kind"] == "other"
    assert "the handler must declare an interface" in caplog.text
    found = described(Silent, tmp_path / "n")
    assert found["kind"] == "other"
    assert "It expects: ten numbers" in found["about"]


def test_golden_cases_of_a_sealed_model_are_no_examples(tmp_path: Path) -> None:
    """Nor golden requests; those of others are."""
    loaded = service(tmp_path / "m")
    body = b"[[1,2,3,4,5,6,7,8,9,10]]"
    recorded = [GoldenRequest("row.json", "application/json", body, "application/json", b"[[1]]")]
    shown = json.loads(description.encoded(loaded, recorded, 100))
    assert shown["requests"][0]["examples"]["golden: row.json"] == json.loads(body)
    (tmp_path / "m" / "model.onnx.sealed").touch()
    hidden = json.loads(description.encoded(loaded, recorded, 100))
    assert not [
        form for side in ("requests", "responses") for form in hidden[side] if form["examples"]
    ]


def test_what_is_too_large_is_left_out(tmp_path: Path) -> None:
    """The acceptor holds what workers say: a megabyte of each."""

    class Long(OnnxHandler):
        def interface(self) -> Interface:
            many = {"enum": ["x" * 1000] * 2000}
            return Interface("text", (BodyForm("text/plain", many),), ())

    assert len(service(tmp_path / "m", kind=Long).description()) < 10_000


@pytest.mark.parametrize("kind", [EncryptedHandler, PartyHandler])
def test_private_models(kind: type[OnnxHandler]) -> None:
    """Bytes of a client of marship's, and the codes that no other model has."""
    found = kind.interface(kind())
    assert found.kind == "encrypted"
    validity.check(found.facts())
    known = {**found.facts(), "inputs": [], "outputs": []}
    whole = document([ServedModel("m", "1", True, True, known)], "1")
    validate(whole)
    responses = whole["paths"]["/predictions/m"]["post"]["responses"]
    assert "409" in responses
    assert "too_large" not in json.dumps(responses["409"])


def test_moderation_is_of_pictures() -> None:
    """A score, and one of three verdicts."""
    found = load_module("moderate_handler").ModerateHandler().interface()
    schema = Draft202012Validator(found.responses[0].schema)
    facts = {"width": 1, "height": 1, "format": "png"}
    assert schema.is_valid({"score": 0.5, "verdict": "review", **facts})
    assert not schema.is_valid({"score": 0.5, "verdict": "perhaps", **facts})


@pytest.mark.parametrize(
    ("about", "answer"),
    [
        ({"task": "feature-extraction", "pooling": []}, [[[0.5, 1.5]]]),
        ({"task": "feature-extraction", "pooling": ["mean"]}, [0.5, 1.5]),
        ({"task": "text-classification", "labels": ["a"]}, {"label": "a", "score": 0.5}),
        ({"task": "text-classification", "labels": ["a"]}, [{"label": "a", "score": 0.5}]),
        (
            {"task": "token-classification", "labels": ["a"]},
            [{"entity": "a", "score": 1.0, "index": 1, "word": "w", "start": 0, "end": 1}],
        ),
    ],
)
def test_what_is_said_of_texts(about: dict[str, Any], answer: Any) -> None:
    """The schema of each task takes what pipelines give for it, and nothing else."""
    schema = Draft202012Validator(answers.schema(about))
    assert schema.is_valid(answer)
    assert not schema.is_valid({"other": 1})


def test_several_inputs_and_odd_axes() -> None:
    """Inputs by name alone; sizes that are bounds of the contract; a model without a batch."""
    inputs = (
        TensorSpec("ids", "int64", ("batch", "length"), value_range=(0, 9)),
        TensorSpec("name", "str", ("batch",)),
    )
    outputs = (
        TensorSpec("a", "float32", ("batch", 2), labels=("x", "y")),
        TensorSpec("b", "bool", ()),
    )
    contract = Contract(
        inputs, outputs, ("m.onnx",), "", 17, batch_axis=None, bounds={"length": (2, 4)}
    )
    found = tensors.interface(contract, {}, dict)
    titles = [form.title for form in found.requests]
    assert titles[:2] == ["inputs by name", "KServe v2"]
    schema = Draft202012Validator(found.requests[0].schema)
    assert schema.is_valid({"ids": [[0, 9]], "name": ["a"]})
    for ids in ([[0]], [[0] * 5], [[10, 0]], [[0.5, 1]]):
        assert not schema.is_valid({"ids": ids, "name": ["a"]})
    returned = Draft202012Validator(found.responses[0].schema)
    assert returned.is_valid({"a": [{"x": 1, "y": None}], "b": True})
    known = {**found.facts(), "inputs": [], "outputs": []}
    validate(document([ServedModel("a b/c", "1", True, True, known)], "1"))


def test_a_proxys_part_of_the_document() -> None:
    """Predictions of exposed models by POST, health, and nothing that refers to others."""
    seats = Seats()
    seats.follow({name: ModelState("1", ("1",), {"1": 1}, {"1": 1}) for name in "abc"})
    replies = ServerReplies(seats, {}, has_tokens=True, is_restart=False)
    for names in ("a,c", "a,c", "a,nobody,c", "c,a"):
        head = Head("GET", f"/openapi.json?exposed={names}".encode(), {})
        reply = replies.reply("document", head, is_closing=False)
        whole = json.loads(reply.body)
        validate(whole)
        own = {f"/predictions/{name}{version}" for name in "ac" for version in ("", "/1")}
        assert set(whole["paths"]) == {*own, "/ping", "/openapi.json"}
        assert {verb for path in own for verb in whole["paths"][path]} == {"post"}
        assert [model["name"] for model in whole["x-marship-models"]] == ["a", "c"]
        assert b"b.1" not in reply.body
        assert [tag["name"] for tag in whole["tags"]] == ["a", "c", "the server"]
    other = replies.reply("document", ASKED, is_closing=False)
    assert len(json.loads(other.body)["x-marship-models"]) == 3
    for n in range(100):  # whatever is asked, few are kept
        head = Head("GET", f"/openapi.json?exposed={n}".encode(), {})
        validate(json.loads(replies.reply("document", head, is_closing=False).body))


def test_versions_and_workers_of_an_earlier_marship() -> None:
    """Each version has its paths, the default one those without a version; no worker, no forms."""
    seats = Seats()
    seats.follow({"m": ModelState("2", ("1", "2"), {"1": 1, "2": 1}, {"2": 1})})
    replies = ServerReplies(seats, {}, has_tokens=False, is_restart=False)
    whole = json.loads(replies.reply("document", ASKED, is_closing=False).body)
    validate(whole)
    assert "security" not in whole
    found = [(m["version"], m["is_default"], m["is_ready"]) for m in whole["x-marship-models"]]
    assert found == [("1", False, False), ("2", True, True)]
    assert {"/predictions/m", "/predictions/m/1", "/predictions/m/2"} <= whole["paths"].keys()
    assert "/v1/models/m:predict" in whole["paths"]


@pytest.mark.parametrize("about", [b"{", b"[]", b"{}", b'{"kind": "x", "requests": 1}', b"\xff"])
def test_what_a_worker_says_wrongly_hides_no_other_model(
    about: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The code of an archive makes it: its model is described as any other that says nothing."""
    seats = Seats()
    for name, said in (("bad", about), ("good", b"")):
        seat = Seat(Deaf())  # type: ignore[arg-type]  has all that is used
        seat.model, seat.version, seat.description = name, "1", said
        seats.add(seat)
    replies = ServerReplies(seats, {}, has_tokens=True, is_restart=False)
    whole = json.loads(replies.reply("document", ASKED, is_closing=False).body)
    assert [(m["name"], m["kind"]) for m in whole["x-marship-models"]] == [
        ("bad", "other"), ("good", "other"),
    ]  # fmt: skip
    assert "bad 1 must be described by its worker" in caplog.text


class Deaf:
    """A channel to a worker that is told things."""

    def send(self, packet: object) -> None:
        """Do nothing."""


def test_a_server_with_a_model_of_each_odd_kind_has_a_valid_document() -> None:
    """A model named server, and one without inputs; each has its paths, and the server its own."""
    output = (TensorSpec("y", "float32", (1,)),)
    contract = Contract((), output, ("m.onnx",), "", 17, batch_axis=None)
    known = {**tensors.interface(contract, {}, dict).facts(), "inputs": [], "outputs": []}
    validate_schemas = [form["schema"] for form in known["requests"]]
    for schema in validate_schemas:
        Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(validate_schemas[0]).is_valid({})
    models = [ServedModel(name, "1", True, True, known) for name in ("server", "noin")]
    whole = document(models, "1")
    validate(whole)
    assert {path for path in interfaces.only(whole, "server")["paths"] if "server" not in path} == (
        set()
    )


def test_integers_are_said_to_have_no_fraction() -> None:
    """JSON Schema takes 3.0 for an integer, which the codec refuses."""
    for dtype, is_said in (("int64", True), ("uint8", True), ("float32", False)):
        spec = TensorSpec("x", dtype, ("batch",))
        contract = Contract((spec,), (spec,), ("m.onnx",), "", 17, batch_axis="batch")
        assert ("3, not 3.0" in tensors.interface(contract, {}, dict).about) is is_said


FORM = BodyForm("application/json", {"type": "object"})
MISTAKES: dict[str, Interface] = {
    "kind": Interface("unheard", (FORM,), (FORM,)),
    "requests[0].content_type": Interface("text", (BodyForm("text", {}),), (FORM,)),
    "requests[1].schema.type": Interface("text", (FORM, BodyForm("a/b", {"type": "no"})), ()),
    "responses[0].schema.$ref": Interface("text", (), (BodyForm("a/b", {"$ref": "#/nowhere"}),)),
    "schema.properties.a.items.anyOf": Interface(
        "text", (BodyForm("a/b", {"properties": {"a": {"items": {"anyOf": []}}}}),), ()
    ),
    "schema.properties.a": Interface("text", (BodyForm("a/b", {"properties": {"a": 1}}),), ()),
    "schema.minItems": Interface("text", (BodyForm("a/b", {"minItems": -1}),), ()),
    "schema.maximum": Interface("text", (BodyForm("a/b", {"maximum": "9"}),), ()),
    "schema.required": Interface("text", (BodyForm("a/b", {"required": True}),), ()),
    "parameters[0]": Interface("text", (FORM,), (FORM,), parameters=("x",)),  # type: ignore[arg-type]
    "parameters[1]": Interface(
        "text", (FORM,), (FORM,), parameters=({"name": "k", "in": "query", "schema": {}},) * 2
    ),
    "codes": Interface("text", (FORM,), (FORM,), codes={"hello": "abc"}),
}


@pytest.mark.parametrize("where", MISTAKES)
def test_an_invalid_declaration_hides_no_other_model(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker says any bytes in its place and logs where; a server asks an old one's again."""

    class Wrong(OnnxHandler):
        def interface(self) -> Interface:
            return MISTAKES[where]

    assert described(Wrong, tmp_path / "m")["kind"] == "other"
    assert f"{where} of an interface must" in caplog.text
    known = {**MISTAKES[where].facts(), "inputs": [], "outputs": []}
    seats = Seats()
    seat = Seat(Deaf())  # type: ignore[arg-type]  has all that is used
    seat.model, seat.version, seat.description = "m", "1", json.dumps(known).encode()
    seats.add(seat)
    replies = ServerReplies(seats, {}, has_tokens=True, is_restart=False)
    validate(json.loads(replies.reply("document", ASKED, is_closing=False).body))
