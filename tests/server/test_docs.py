"""Every shell block of docs/ does what it says, in the order it stands on its page.

A new block runs as it is typed. What is changed in a block, and why one does not run here, stands
in the tables below; an entry that fits no block any more is an error.
"""

import contextlib
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digits_folder import write_digits
from marship.engines.torchserve import server
from marship.errors import NotRunningError
from mini_movielens import write_mini
from models import wide
from nginx import find, free_port
from own_model import write_own_model
from photos import colour
from recordings import recording

DOCS = Path(__file__).parents[2] / "docs"

NOT_RUN = {
    ("export.md", "model.pt2"): "needs files of one's own; tests/unit/exporting/test_kinds.py "
    "exports such ones",
    ("image.md", "--backbone efficientnet-lite0"): "fetches the network from PyPI; "
    "tests/training/test_fine_tuning.py runs it from a file",
    ("image.md", "--data-dir cifar10"): "takes an hour, and data that may not be in the repository",
    ("image.md", "benchmarks/pictures.py"): "takes minutes, and photographs",
    ("kubernetes.md", "openssl rand"): "serves until it is ended; tests/unit/engines/"
    "test_standalone.py starts such hosts",
    ("kubernetes.md", "buildah build"): "needs a registry; tests/containers builds an image",
    ("kubernetes.md", "kubectl apply"): "needs a cluster; tests/unit/deploying writes each form",
    ("kubernetes.md", "--kserve"): "tests/unit/deploying writes each form",
    (
        "memory.md",
        "benchmarks/memory.py",
    ): "takes minutes; tests/server/test_weights.py measures it",
    ("onnx.md", "listener.onnx"): "needs a file of one's own; tests/unit/packaging/"
    "test_examples.py packs such a one with each kind of example",
    ("onnx.md", "--graph decoder"): "needs an encoder and a decoder; tests/unit/packaging/"
    "test_graphs.py packs such ones with the page's handler",
    ("onnx.md", "localedef"): "changes the machine",
    ("onnx.md", "libmyops.so"): "needs a library; tests/unit/packaging/test_custom_ops.py packs "
    "such a one",
    ("ray.md", "marship scale recommend"): "tests/server/ray runs these commands on one node",
    ("ray.md", "ray start --head"): "tests/server/ray runs these commands on three nodes",
    ("performance.md", "make bench"): "takes hours; tests/unit/test_benchmark.py tries its parts",
    ("private-parties.md", "party-keys"): "needs three operators; tests/server/"
    "test_private_parties.py runs the same steps",
    (
        "reliability.md",
        "make torture",
    ): "takes a quarter of an hour; `make test` runs the short forms in tests/server/torture",
    ("private.md", "training/digits.py"): "trains for a minute; training.md does, and "
    "tests/server/test_private.py serves a private model",
    ("recommend.md", "training/recommend.py"): "downloads MovieLens, and trains for minutes; "
    "tests/server/test_readme.py runs it on generated data",
    ("rollout.md", "marship canary"): "needs clients, for as long as it runs; "
    "tests/server/test_trial.py runs these commands under load",
    ("sealing.md", "benchmarks/sealing.py"): "takes minutes",
    ("sealing.md", "--samples"): "needs a model's clients; tests/unit/engines/"
    "test_sampled_host.py and tests/unit/operate/test_opened_samples.py run the same steps",
    ("serving.md", "--reload runs"): "does not end by itself; tests/server/test_reload.py follows "
    "saves",
    ("serving.md", "ssh -N"): "needs another host; tests/server/test_elsewhere.py runs the same "
    "commands at addresses",
    ("speech.md", "apt-get install"): "fetches packages of Debian and a model; "
    "tests/training/test_whisper.py runs the same steps with a small model",
    ("speech.md", "training/speech_protocol.py"): "takes an hour; tests/training/"
    "test_speech_protocol.py tries its parts, and the block above runs the same recipes",
    (
        "transformers.md",
        "hf:my-model",
    ): "needs a model's folder; tests/server/"
    "test_pretrained.py runs the same steps with a small one",
    ("transformers.md", "letter.txt"): "goes on from there; the same test sends a plain text",
    ("transformers.md", "my-onnx-model"): "needs a folder of one's own; tests/unit/packaging/"
    "test_onnx_folder.py packs such ones",
    ("transformers.md", "timm:resnet18"): "needs timm and weights; tests/unit/exporting/"
    "test_timm_models.py exports with a stand-in",
    ("training.md", "--nnodes 2"): "needs two hosts; tests/unit/fit/test_loop.py runs the tiny "
    "recipe so",
    ("tune.md", "marship tune"): "takes ten minutes; tests/unit/operate/tune/test_tune.py runs "
    "short ones",
    ("autoscaling.md", "marship autoscale"): "does not end by itself; "
    "tests/server/test_autoscale.py runs it under load",
    ("threat-model.md", "make audit"): "asks PyPI; tests/unit/test_audit.py tries it with answers",
}
"""By page and words of the block: why it does not run."""

CHANGED = [
    # a smaller training, proof and measurement
    (r"(training/image.py --data-dir photos)", r"\1 --side 8 --width 8 --mirror 0 --epochs 1"),
    (r"(training/spoken_digits.py .*--leave-out theo)", r"\1 --utterances 30 --synthetic 0"),
    (
        r"(training/speech.py .*--sample-rate 8000)",
        r"\1 --backbone none --epochs 1 --width 8 --blocks 1",
    ),
    (r"marship export", "marship export --proof-seconds 2"),
    (r"marship optimize", "marship optimize --measure-s 0.1 --search-s 2"),
    # ports and addresses of this run; a server that returns, so that the next line runs
    (
        r"(marship serve [^#\n|&]*?)(?: --detach)?(?: --free-ports)?(?= *(?:#|\n|$))",
        r"\1 --detach --free-ports",
    ),
    (r"(marship proxy recommend)", r"\1 --listen 127.0.0.1:$PROXY_PORT"),
    (r"http://127.0.0.1:8080", "$INFERENCE"),
    (r"http://127.0.0.1:8081", "$MANAGEMENT"),
    (r"http://127.0.0.1:8082", "$METRICS"),
    (r"https://models.example.com", "$ELSEWHERE"),
]
"""What is changed in the blocks, and nothing else."""

BEFORE = {
    "proxy.md": """
        marship package runs/recommend
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
            -out fullchain.pem -keyout privkey.pem 2>openssl.log
        chmod 600 privkey.pem""",
    "json.md": "marship serve --detach --free-ports",
    "openapi.md": """
        marship package runs/recommend
        marship serve --detach --free-ports
        marship register recommend --workers 1""",
    "rollout.md": """
        marship package runs/image --name tagger
        marship package runs/recommend --versioned
        marship serve --detach --free-ports
        marship register recommend-1.0.mar""",
    "serving.md": """
        marship package runs/recommend
        marship package runs/image --name tagger
        marship package runs/speech --name whisper
        marship serve --detach --free-ports
        marship register tagger --workers 1
        marship register whisper --workers 1""",
    "signing.md": "marship package runs/recommend",
    "threat-model.md": "marship package runs/recommend",
}
"""What the reader of a page has done already."""

EXPORTED = "test -e runs/recommend/model.onnx || marship export --proof-seconds 2 runs/recommend"
"""What export.md does; needed where another page runs without it."""

AFTER = {"proxy.md": 'nginx -p "$PWD/proxy" -c nginx.conf -s stop'}


def blocks(page: str) -> list[str]:
    """A page's shell blocks, with continued lines joined."""
    return [block.replace("\\\n", " ") for block in fenced(page, "(?:bash|sh|shell|console)")]


def fenced(page: str, language: str) -> list[str]:
    """A page's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def reason(page: str, block: str) -> str | None:
    """Why a block does not run here."""
    return next(
        (why for (on, words), why in NOT_RUN.items() if on == page and words in block), None
    )


PAGES = sorted(
    (
        page.name
        for page in DOCS.glob("*.md")
        if any(not reason(page.name, b) for b in blocks(page.name))
    ),
    key=lambda name: (name not in {"export.md", "image.md", "speech.md"}, name),
)
"""Those with something to run; first those that make the models which the others serve."""


class Typed:
    """A shell in a checkout's folder, with a home of its own for keys."""

    def __init__(self, place: Path, home: Path) -> None:
        self.place, self.home = place, home
        self.variables: dict[str, str] = {}

    def __call__(self, text: str) -> None:
        """Run lines in one shell; each must succeed."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:{Path(find()).parent}"
        env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HOME": str(self.home)}
        output = self.home / "output.txt"  # not a pipe: nginx would keep it open
        with output.open("w") as sink:
            done = subprocess.run(
                ["bash", "-eu", "-o", "pipefail", "-c", text],  # noqa: S607  the reader's own
                cwd=self.place,
                env={**env, **self.variables, **self._addresses()},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                check=False,
                timeout=300,
            )
        assert done.returncode == 0, f"{text}\n{output.read_text()}"

    def _addresses(self) -> dict[str, str]:
        try:
            record = server.status(self.place / ".marship")
        except NotRunningError:
            return {}
        urls = record.inference_url, record.management_url, record.metrics_url
        return dict(zip(("INFERENCE", "MANAGEMENT", "METRICS"), urls, strict=True))

    def stop(self) -> None:
        """Stop the servers that the lines started."""
        for home in (".marship", "one", "two", "diabetes/.marship"):
            with contextlib.suppress(NotRunningError):
                server.stop(self.place / home)

    def block(self, text: str) -> None:
        """Run a block of a page, changed as `CHANGED` says; a server in its way is stopped."""
        for pattern, instead in CHANGED:
            text = re.sub(pattern, instead, text)
        if "marship serve" in text and "marship stop" not in text:
            self.stop()
        self(text)


@pytest.fixture(scope="module")
def checkout(place: Path) -> Path:
    """The reader's files: a trained recommender, photographs, recordings, a model of their own."""
    write_mini(place / "mini")
    write_own_model(place)
    wide(place / "model.onnx", 4)
    np.savez(place / "data.npz", x=np.arange(40, dtype=np.uint8))
    write_digits(place / "photos", 120)
    (place / "photo.jpg").write_bytes(colour("red", kind="JPEG"))
    (place / "more").mkdir()
    (place / "more" / "one.png").write_bytes(colour("blue"))
    (place / "recordings").mkdir()
    (place / "talks").mkdir()
    for number, (speaker, digit, index) in enumerate(np.ndindex(3, 10, 7)):
        name = f"{digit}_{('theo', 'ann', 'bob')[speaker]}_{index}.wav"
        tone = np.sin(np.arange(1600) * (0.2 + number / 1000)).astype(np.float32)
        soundfile.write(place / "recordings" / name, tone / 2, 8000)
    (place / "talks" / "one.mp3").write_bytes(recording("mp3"))
    (place / "talk.mp3").write_bytes(recording("mp3"))
    (state,) = fenced("rollout.md", "toml")
    (place / "state.toml").write_text(state)
    train = "python training/recommend.py --epochs 2 --width 8 --data-dir mini"
    Typed(place, place)(train)
    Typed(place, place)(f"{train} --ease 0 --run-dir runs/network")
    return place


@pytest.fixture
def elsewhere(checkout: Path) -> Iterator[str]:
    """The address of a server that holds the model store's files."""
    folder = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=checkout / "model_store"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), folder) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()


@pytest.fixture
def shell(checkout: Path, tmp_path: Path, elsewhere: str) -> Iterator[Typed]:
    """A shell beside a server's home that nothing was started in."""
    typed = Typed(checkout, tmp_path)
    typed.variables = {"ELSEWHERE": elsewhere, "PROXY_PORT": str(free_port())}
    yield typed
    typed.stop()
    shutil.rmtree(checkout / ".marship", ignore_errors=True)
    for results in checkout.glob("*.predictions.csv"):  # of models that the next page names anew
        results.unlink()


@pytest.mark.parametrize("page", PAGES)
def test_every_shell_block_of_a_page_runs(page: str, shell: Typed) -> None:
    """In order, each line succeeding, but for what `NOT_RUN` gives a reason for."""
    if page != "export.md":
        shell(EXPORTED)
    shell(BEFORE.get(page, ":"))
    for block in blocks(page):
        if reason(page, block) is None:
            shell.block(block)
    shell(AFTER.get(page, ":"))


def test_every_exception_and_every_change_is_needed() -> None:
    """Each names words that stand in one block, or in some."""
    for page, words in NOT_RUN:
        assert sum(words in block for block in blocks(page)) == 1, (page, words)
    typed = "".join(block for page in DOCS.glob("*.md") for block in blocks(page.name))
    for pattern, _ in CHANGED:
        assert re.search(pattern, typed), pattern


def test_every_command_that_stands_alone_is_a_shell_block() -> None:
    """No command hides in an indented block, or in a fence without a language."""
    command = re.compile(r"(?:marship|python|make|pip|curl|nginx|apt-get) \S")
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        fence = None
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.startswith("```"):
                fence = line[3:] if fence is None else None
            elif fence == "" or (fence is None and line.startswith("    ")):
                assert not command.match(line.strip()), f"{page.name}:{number}"


def test_every_link_between_the_pages_leads_somewhere() -> None:
    """To a file of the repository, and to a heading that is there."""
    for page in DOCS.glob("*.md"):
        for target, heading in re.findall(
            r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()
        ):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
                assert heading in anchors, f"{page.name}: {target}#{heading}"
