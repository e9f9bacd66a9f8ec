"""A small model of each kind that a page has a form for, packed, and a host that serves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colours import pack_colours
from hosted import TOKEN, Hosted
from marship.packaging.step import PackageSettings, package
from recommenders import pack_neighbours
from tokens_of_words import pack_words
from versions import linear
from whistles import pack_ear

NAMES = ("colours", "ear", "lin", "recommend", "words")


def pack_kinds(folder: Path) -> list[Path]:
    """Archives of tensors, pictures, recordings, histories and texts."""
    folders = {name: folder / name for name in NAMES}
    for each in folders.values():
        each.mkdir(parents=True)
    model = linear(folders["lin"] / "lin.onnx", 1)
    return [
        pack_colours(folders["colours"]),
        pack_ear(folders["ear"]),
        package(model, PackageSettings(model_store=folders["lin"])),
        pack_neighbours(folders["recommend"], step=3),
        pack_words(folders["words"]),
    ]


@contextmanager
def hosting(folder: Path) -> Iterator[Hosted]:
    """A host of them, ready; its token is `TOKEN`."""
    token = folder / "token"
    archives = pack_kinds(folder / "packed")
    token.write_text(TOKEN)
    with Hosted(folder / "home", *archives, "--require-token", token) as host:
        yield host.ready()
