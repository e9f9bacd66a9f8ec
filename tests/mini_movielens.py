"""A small MovieLens-100k of our own making, in the same files."""

from pathlib import Path

import numpy as np

ITEMS = 1682
PEOPLE = 40
RING = 60
"""People walk round a ring of items: after item i comes i + 1, with luck."""


def write_mini(folder: Path, *, people: int = PEOPLE, seed: int = 0) -> Path:
    """Write ml-100k.inter and ml-100k.item."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for person in range(1, people + 1):
        first, count = generator.integers(RING), generator.integers(12, 40)
        steps = (first + np.arange(count)) % RING + 1
        start = 875_000_000 + int(generator.integers(0, 10_000_000))
        for place, item in enumerate(steps):
            rows.append((person, item, generator.integers(1, 6), start + 60 * place))
    generator.shuffle(rows)
    lines = ["\t".join(map(str, row)) for row in rows]
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "\n".join(lines) + "\n"
    )
    films = [f"{i}\tFilm {i}\t{1920 + i % 79}\tDrama Comedy" for i in range(1, ITEMS)]
    films.append(f"{ITEMS}\tunkonwn\tunkonwn\tunknown")
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "\n".join(films)
        + "\n"
    )
    return folder
