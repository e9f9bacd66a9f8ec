"""Mutated requests at every port and at the proxy, with load beside them.

`CLEAN` and `KNOWN` list TorchServe's own error responses. Anything else that is no response of
marship's handlers fails, with the seed and the index: `Maker.make(index)` makes the same again.
"""

import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from colours import pack_colours
from figures import Figures
from loads import Tally, load
from marship import Client
from marship.client.clients import Model
from marship.engines.torchserve.server import Server
from marship.operate.proxy import ProxySettings
from mutants import Maker, Mutant
from nginx import Door, free_port, in_front
from real_requests import asked, managed, measured
from versions import ANSWERS, ROW
from wires import STATUS, Line, Outcome

SEED = 6
THREADS = 12
WAIT_S = 0.25
SHOWN = 400
MB = 1 << 20
WORKER_GROWTH = 64 * MB
GROWTH = {"java": 700 * MB, "nginx": 64 * MB}

LEAKS = re.compile(
    rb"Traceback|File \"|site-packages|/usr/|\.py\b|\tat |\.java:|"
    rb"\b(?:java|javax|io\.netty|org\.pytorch|com\.google|ai\.onnx)[./]|\w(?:Exception|Error)\b"
)
OWN = re.compile(
    rb'\{\n  "code": (\d+),\n  "type": "(\w+)"(?:,\n  "message": "(.*)")?\n\}\n', re.DOTALL
)
"""An error of TorchServe's own. Java omits the message of an error that is repeated often."""

PASSED_ON = re.compile(
    rb'\{"code":("[a-z_]+"),"type":"(\w+)"(?:,"message":"(.*)"(?:,"error":"\3")?)?\}', re.DOTALL
)
"""The same, as the direct address passes it on: with a code of ours, and KServe v2's `error`."""

CLEAN = {
    (400, "BadRequestException"): rb"Invalid HTTP message\.|Parameter [\w ]+ is required\.",
    (400, "InvalidKeyException"): rb"Token Auth\w+ failed\. Token either incorrect, expired, .*",
    (404, "ResourceNotFoundException"): rb"Requested resource is not found, .*",
    (404, "ModelNotFoundException"): rb"Model not found: .*",
    (404, "ModelVersionNotFoundException"): rb"Model version: .* does not exist for model: .*",
    (404, "WorkflowNotFoundException"): rb"Workflow not found: .*",
    (405, "MethodNotAllowedException"): rb"Requested method is not allowed, .*",
}
"""TorchServe's own errors that reveal nothing: `type` is one of these names."""

FORM = rb"content-type: *(?:multipart/form-data|application/x-www-form-urlencoded)"
KNOWN = {
    (403, "IllegalArgumentException"): rb"%",
    (403, "IllegalCharsetNameException"): rb"charset",
    (403, "UnsupportedCharsetException"): rb"charset",
    (500, "ArrayIndexOutOfBoundsException"): rb"\A\W*\S*\s+(?!/)|" + FORM,
    (500, "StringIndexOutOfBoundsException"): FORM,
    (500, "ErrorDataDecoderException"): FORM,
}
"""TorchServe's errors that reveal something, and what their requests contain.

The proxy lets none through.
"""

OPEN = re.compile(
    rb"(?:\A|\n)(?:OPTIONS |(?:GET|HEAD) \S*/"
    rb"(?:ping|v2/health/\w+|v2/models/\S+/ready|v1/models/[^\s:]+))"
)
OPEN_ANSWER = re.compile(rb'(?:\{"(?:status|live|ready|name)":[^{}]*\})?')
LACKS = (501, 505)
"""The direct address answers what it lacks so: another HTTP, a transfer encoding."""

EXPLAINS = re.compile(rb"(?i)explain|explanations")
"""Paths of what models here do not offer, at each address."""

THROUGH_PROXY = [
    (400, "BadRequestException"),
    (400, "InvalidKeyException"),
    (404, "ModelVersionNotFoundException"),
]
"""TorchServe's own errors that the proxy passes on: a character below 32, a token, a version."""

PAGES = re.compile(rb"\A(?:TRACE|CONNECT) |transfer-encoding", re.IGNORECASE)
"""Requests for which nginx may respond with its own HTML page, as it refuses the body."""


class Place:
    """A server with two models, the proxy in front of it, and mutated requests for both.

    Args:
        server: With the models lin and colours only.
        door: The proxy.
        client: Of the server.
        folders: Paths that no response may contain.
    """

    def __init__(self, server: Server, door: Door, client: Client, *folders: Path) -> None:
        self.server, self.client, self._door = server, client, door
        names = b"|".join(re.escape(str(folder).encode()) for folder in folders)
        self._leaks = re.compile(LEAKS.pattern + b"|" + names, re.DOTALL)
        keys = json.loads(server.home.key_file.read_text())
        self._keys = {name: value["key"].encode() for name, value in keys.items()}

    def maker(self, kind: str, seed: int) -> Maker:
        """A maker of mutants for TorchServe's ports, or for the proxy."""
        inference, management = self._keys["inference"], self._keys["management"]
        if kind == "proxy":
            seeds = [*asked("proxy", inference)] * 3  # the rest is nginx's to refuse
            seeds += managed("proxy", management, inference)
        elif kind == "direct":
            seeds = [*asked("direct", inference), *managed("direct", management, inference)]
        else:
            seeds = [*asked("inference", inference), *measured("metrics")]
            seeds += managed("management", management, inference)
        wrong = {
            door: odd_tokens(right, other, is_direct=door == "direct")
            for door, right, other in (
                ("inference", inference, management),
                ("proxy", inference, management),
                ("direct", inference, management),
                ("metrics", inference, management),
                ("management", management, inference),
            )
        }
        return Maker(seeds, wrong, seed)

    def connect(self, door: str) -> socket.socket:
        """A connection to one of the ports, or to the proxy."""
        if door == "proxy":
            return self._door.connect()
        url = getattr(self.server.record, f"{door}_url")
        return socket.create_connection(("127.0.0.1", urlsplit(url).port))

    def models(self) -> list[Model]:
        """All models and versions, with their workers."""
        return [
            replace(model, versions=tuple(replace(one, waiting=0) for one in model.versions))
            for model in self.client.models()
        ]

    def memory(self) -> dict[str, int]:
        """Bytes of Java, of each worker, and of nginx."""
        nginx = psutil.Process(int((self._door.folder / "nginx.pid").read_text()))
        found = {"nginx": sum(child.memory_info().rss for child in nginx.children())}
        found["java"] = psutil.Process(self.server.record.pid).memory_info().rss
        for model in self.models():
            for version in model.versions:
                for worker in version.workers:
                    found[model.name] = psutil.Process(worker.pid).memory_info().rss
        return found

    def faults(self, mutant: Mutant, outcome: Outcome) -> Iterator[str]:
        """What must not be, of all that came back."""
        if mutant.request.is_sure and not outcome.is_whole:
            yield "a whole request got no answer"
        answers = re.split(rb"(?=HTTP/1\.1 \d{3} )", outcome.got)
        for number, answer in enumerate(filter(None, answers)):
            yield from self._answer_faults(mutant, answer, is_first=number == 0)

    def _may_enter(self, mutant: Mutant, *, is_first: bool) -> bool:
        door = mutant.request.door
        if door == "metrics":
            return True
        if "wire" in mutant.changes:  # whatever became of its bytes, they must hold the token
            return self._keys["management" if door == "management" else "inference"] in mutant.wire
        return mutant.request.may_enter and is_first

    def _answer_faults(self, mutant: Mutant, answer: bytes, *, is_first: bool) -> Iterator[str]:
        request = mutant.request
        found = STATUS.match(answer)
        status = int(found[1]) if found else 400
        body = answer.partition(b"\r\n\r\n")[2] if found else answer  # HTTP/0.9 has no head
        is_proxy, is_bare = request.door == "proxy", request.method == b"HEAD"
        is_page = b"<center>nginx</center>" in body and PAGES.search(mutant.wire)
        is_public = b'"openapi"' in body[:20] or (is_bare and b"api-description" in mutant.wire)
        if is_public:
            return  # the description of the API: the same for all, and full of names of errors
        is_direct = request.door in ("direct", "proxy")
        is_open = is_direct and OPEN.search(mutant.wire) and OPEN_ANSWER.fullmatch(body)
        if is_open and (status < 400 or (status == 503 and body)):
            return  # health and allowed methods, which need no token
        if status < 400:
            if status != 100 and not self._may_enter(mutant, is_first=is_first):
                yield "let in"
        elif own := OWN.fullmatch(body) or (is_direct and PASSED_ON.fullmatch(body)):
            yield from own_faults(mutant, (status, own[2].decode()), own[3] or b"")
            return
        elif is_lack(mutant, status, body):
            return
        elif status >= 500 and (is_proxy or not is_bare):
            yield "a fault of the server"
        elif is_proxy and not (is_bare or is_page or is_json(body)):
            yield "an error that is no JSON"
        if leak := self._leaks.search(answer):
            yield f"{leak[0]!r} leaked"


def is_lack(mutant: Mutant, status: int, body: bytes) -> bool:
    """Whether it is the response to what a server lacks: explanations, or something of HTTP."""
    if mutant.request.door in ("direct", "proxy") and status in LACKS and is_json(body):
        return True
    return status == 501 and b'"code":"unsupported"' in body and bool(EXPLAINS.search(mutant.wire))


def own_faults(mutant: Mutant, kind: tuple[int, str], message: bytes) -> Iterator[str]:
    """What is wrong with an error of TorchServe's own."""
    is_proxy = mutant.request.door == "proxy"
    if kind in CLEAN:
        if not re.fullmatch(CLEAN[kind], message, re.DOTALL):
            yield "another message than is known"
        if is_proxy and kind not in THROUGH_PROXY:
            yield "an answer of TorchServe's that the proxy must not pass on"
    elif is_proxy or kind not in KNOWN or not re.search(KNOWN[kind], mutant.wire, re.IGNORECASE):
        yield f"{kind} is not known"


def is_json(body: bytes) -> bool:
    """Whether it is an error in marship's form."""
    try:
        return {"code", "message"} <= set(json.loads(body))
    except (ValueError, TypeError):
        return False


def odd_tokens(right: bytes, other: bytes, *, is_direct: bool) -> list[bytes]:
    """Headers that let nobody in."""
    given = [other, right[:-1], right + b"x", right.swapcase(), b"", b"None", b"null", b"x" * 2000]
    given += [right + b" " + right, right + b"\0", b"\xff" + right, b'"' + right + b'"', b"*"]
    schemes = [b"bearer " + right, b"Basic " + right, right, b"Bearer", b"Bearer" + right, b""]
    if is_direct:  # the scheme's name may be in lower case (RFC 9110, 11.1); TorchServe refuses it
        schemes.remove(b"bearer " + right)
    return [b"Bearer " + token for token in given] + schemes


@pytest.fixture(scope="module")
def place(
    start: Callable[..., Server], archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A server of its own, with a model of tensors and one of pictures."""
    folder = tmp_path_factory.mktemp("mutants")
    made = pack_colours(folder, name="mutated-colours", profile="throughput")
    made.rename(archives / "mutated-colours.mar")
    one = start()
    settings = ProxySettings(
        home=one.home.path,
        out=folder / "proxy",
        listen=f"127.0.0.1:{free_port()}",
        self_signed=True,
        rate=100_000,
        burst=100_000,
        connections=1000,
    )
    with Client(one.home.path) as client, in_front(settings, ["lin", "colours"]) as door:
        client.register("lin-1.mar", name="lin", workers=1)
        client.register("mutated-colours.mar", name="colours", workers=1)
        yield Place(one, door, client, one.home.path, archives, folder)
    one.stop()


def send(place: Place, maker: Maker, indices: range, tally: Tally, seen: Counter[str]) -> list[str]:
    """Send these mutants one after the other; return the faults, each with seed and index."""
    lines: dict[str, Line] = {}
    wrong = []
    for mutant in map(maker.make, indices):
        door = mutant.request.door
        line = lines.setdefault(door, Line(partial(place.connect, door)))
        tally.send()
        outcome = line.ask(
            mutant.wire,
            is_sure=mutant.request.is_sure,
            is_head=mutant.request.method == b"HEAD",
            wait_s=WAIT_S,
        )
        faults = list(place.faults(mutant, outcome))
        wrong += [describe(maker, mutant, fault, outcome) for fault in faults]
        into, key = ended(tally, outcome, bool(faults))
        tally.count(into, key, outcome.seconds)
        seen[key] += 1
    for line in lines.values():
        line.close()
    return wrong


def ended(tally: Tally, outcome: Outcome, is_wrong: bool) -> tuple[Counter[str], str]:
    """The counter for an outcome, and the key."""
    if outcome.status is None and not outcome.got:
        key = "closed" if outcome.is_cut else "waits for more"
        return tally.lost, key
    key = str(outcome.status or "no status")
    if is_wrong:
        return tally.wrong, key
    return (tally.correct if key < "4" else tally.failed), key


def describe(maker: Maker, mutant: Mutant, fault: str, outcome: Outcome) -> str:
    """The seed and index of a mutant, and how it begins."""
    return (
        f"{fault}: seed {maker.seed}, index {mutant.index}, to {mutant.request.door}, "
        f"changed {', '.join(mutant.changes)}\n  sent {mutant.wire[:SHOWN]!r}\n"
        f"  got  {outcome.got[:SHOWN]!r}"
    )


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("ports", "mutated requests to TorchServe"),
        ("direct", "mutated requests to the direct address"),
        ("proxy", "mutated requests to the proxy"),
    ],
)
def test_mutated_requests_do_no_harm(
    place: Place, amount: Callable[[float, float], float], figures: Figures, kind: str, case: str
) -> None:
    """Each gets an allowed response or is closed; load beside them gets correct responses."""
    count = int(amount(1500, 50_000))
    warm = [send(place, place.maker(kind, 0), range(200), Tally(), Counter())]
    models, memory = place.models(), place.memory()
    maker, tally, seen = place.maker(kind, SEED), Tally(), Counter[str]()
    home = place.server.home.path
    with (
        load(home, "lin", ROW, {"1": ANSWERS["1"]}, threads=2, pause_s=0.02) as beside,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        parts = [range(first, count, THREADS) for first in range(THREADS)]
        wrong = list(pool.map(lambda part: send(place, maker, part, tally, seen), parts))
    faults = [fault for part in (*warm, *wrong) for fault in part]
    assert not faults, f"{len(faults)} in all\n" + "\n".join(faults[:20])
    assert place.models() == models
    grown = {name: size - memory[name] for name, size in place.memory().items()}
    assert all(size <= GROWTH.get(name, WORKER_GROWTH) for name, size in grown.items()), grown
    assert not beside.wrong | beside.failed | beside.lost
    assert tally.ended() == tally.sent == count
    statuses = ", ".join(f"{key}: {number:,}" for key, number in sorted(seen.items()))
    more = ", ".join(f"{name} {size / MB:+.0f} MB" for name, size in grown.items())
    figures.add(case, tally, f"{statuses}; {more}")
    figures.add(f"load beside {case}", beside)
