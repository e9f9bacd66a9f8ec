"""How a recommender's lists are judged, and what it is compared with: popularity and EASE.

    results = ranking.measure(ranking.popularity(split.train), split, genres)

A scorer maps histories to a score for each item. Besides whether the next item is found, the
figures tell what people see: how much of the catalogue, how varied a list is, how popular its
films are, and what somebody gets of whom only a few events are known.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from movielens import ITEMS, History, Split

from marship.contract import Array, Arrays

TOP = 10
Scorer = Callable[[Sequence[History]], Array]
"""Float scores, shape (histories, 1683); the histories end before what is to be predicted."""


def judge(outputs: Arrays, targets: Arrays) -> dict[str, float]:
    """HR@10 and NDCG@10 among all unseen items; ties count against the model.

    Args:
        outputs: `scores`, (users, 1683).
        targets: `item`, int (users,), and `seen`, bool (users, 1683), padding included.
    """
    scores = np.where(targets["seen"], -np.inf, outputs["scores"])
    wanted = np.take_along_axis(outputs["scores"], targets["item"][:, None], 1)
    rank = (~(scores < wanted)).sum(1) - 1  # written so that NaN is never a hit
    gain = np.where(rank < TOP, 1 / np.log2(np.minimum(rank, TOP) + 2), 0)
    return {"hr@10": float((rank < TOP).mean()), "ndcg@10": float(gain.mean())}


def targets_of(histories: Sequence[History]) -> Arrays:
    """Targets for `judge`: the last item of each history, and the items seen before."""
    seen = np.zeros((len(histories), ITEMS), bool)
    seen[:, 0] = True
    for row, history in zip(seen, histories, strict=True):
        row[history.items[:-1]] = True
    return {"item": np.array([h.items[-1] for h in histories]), "seen": seen}


def popularity(train: Sequence[History]) -> Scorer:
    """The most rated items for everybody."""
    counts = counts_of(train)
    return lambda histories: np.tile(counts, (len(histories), 1))


def ease(train: Sequence[History], penalty: float = 500.0) -> Scorer:
    """EASE (Steck 2019, Embarrassingly Shallow Autoencoders, equation 8)."""
    weights = ease_weights(train, penalty)
    return lambda histories: _sets(histories) @ weights


def ease_weights(train: Sequence[History], penalty: float) -> npt.NDArray[np.float64]:
    """What each item of a history adds to every item's score, shape (1683, 1683)."""
    x = _sets(train)
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(ITEMS))
    weights: npt.NDArray[np.float64] = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def counts_of(train: Sequence[History]) -> npt.NDArray[np.float64]:
    """How often each item was rated, shape (1683,)."""
    items = np.concatenate([h.items for h in train])
    return np.bincount(items, minlength=ITEMS).astype(np.float64)


def measure(scorer: Scorer, split: Split, genres: Array) -> dict[str, float]:
    """All figures of a scorer's lists of ten.

    Args:
        scorer: What is judged.
        split: `judged`, and `few` for users of whom little is known.
        genres: Weights of each item's genres, shape (1683, genres).

    Returns:
        `hr@10` and `ndcg@10`; `coverage`, the share of all items that are in somebody's list;
        `diversity`, 1 less the mean cosine of the genres of two films of a list; `popularity`,
        the mean number of ratings of listed films, as a multiple of that of the films that these
        users chose next; and `ndcg@10 of N` for users of whom N events are known, if there are any.
    """
    scores, targets = _scored(scorer, split.judged)
    lists = top(scores, targets["seen"])
    counts = counts_of(split.train)
    results = judge({"scores": scores}, targets)
    results["coverage"] = len(np.unique(lists)) / (ITEMS - 1)
    results["diversity"] = diversity(lists, genres)
    results["popularity"] = float(counts[lists].mean() / counts[targets["item"]].mean())
    for events, histories in split.few.items():
        if not histories:  # a split in time may have no new users
            continue
        scores, targets = _scored(scorer, histories)
        results[f"ndcg@10 of {events}"] = judge({"scores": scores}, targets)["ndcg@10"]
    return results


def top(scores: Array, seen: Array) -> Array:
    """The ten best unseen items of each row, best first, shape (rows, 10)."""
    return np.argsort(np.where(seen, np.inf, -scores), axis=1, kind="stable")[:, :TOP]


def diversity(lists: Array, genres: Array) -> float:
    """1 less the mean cosine of two different films' genres within a list."""
    lengths = np.linalg.norm(genres, axis=1, keepdims=True)
    listed = (genres / np.maximum(lengths, 1e-12))[lists]
    cosines = listed @ listed.transpose(0, 2, 1)
    pairs = lists.shape[1] * (lists.shape[1] - 1)
    alike = cosines.sum((1, 2)) - np.trace(cosines, axis1=1, axis2=2)
    return float(1 - (alike / pairs).mean())


def _scored(scorer: Scorer, histories: Sequence[History]) -> tuple[Array, Arrays]:
    return scorer([h[:-1] for h in histories]), targets_of(histories)


def _sets(histories: Sequence[History]) -> npt.NDArray[np.float64]:
    """1 for each item of a history, shape (histories, 1683)."""
    found = np.zeros((len(histories), ITEMS))
    for row, history in zip(found, histories, strict=True):
        row[history.items] = 1
    return found
