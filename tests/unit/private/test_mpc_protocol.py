"""The protocol of three parties: what it computes, and what each party sees of it."""

from pathlib import Path

import numpy as np
import pytest

from marship.errors import PrivateError
from marship.serving.private.mpc import rehearsal, ring, shares
from marship.serving.private.mpc.protocol import Party
from marship.serving.private.mpc.ring import Words
from trios import open_outputs, package

FALSE_ALARM = 1e-6
"""The probability that a test of uniformity fails although everything is right."""


def dealt(values: Words) -> list[Words]:
    """Each party's shares."""
    parts = shares.deal(values)
    return [shares.take(part, number, values.shape) for number, part in enumerate(parts)]


def computed(operation: str, *values: Words, put: rehearsal.Put = lambda _, data: data) -> Words:
    """The words that three parties get with one operation."""
    trio, given = rehearsal.parties(put), [dealt(one) for one in values]
    found = rehearsal.together(lambda n: getattr(trio[n], operation)(*(one[n] for one in given)))
    return shares.join(found)


def test_the_product_of_words_wraps_as_numpys() -> None:
    """ONNX Runtime multiplies modulo 2^64, also where every sum overflows."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 2**64, (5, 300), dtype=np.uint64)
    right = rng.integers(0, 2**64, (300, 7), dtype=np.uint64)
    assert np.array_equal(ring.product(left, right), left @ right)


def test_shares_join_to_what_was_dealt() -> None:
    """Whatever the words; each party's part is as long as `dealt_bytes` says."""
    values = np.random.default_rng(0).integers(0, 2**64, (3, 5), dtype=np.uint64)
    assert np.array_equal(shares.join(dealt(values)), values)
    for party, part in enumerate(shares.deal(values)):
        assert len(part) == shares.dealt_bytes(party, 15)


def test_parties_that_disagree_are_found() -> None:
    """A share that both hold must be the same: one changed bit is seen."""
    parts = dealt(np.arange(4, dtype=np.uint64))
    parts[1][0, 2] ^= np.uint64(1 << 63)
    with pytest.raises(PrivateError, match="parties 0 and 1 must agree"):
        shares.join(parts)


def test_relu_is_exact_up_to_its_bounds() -> None:
    """For all |x| < 2^31 as a word, each side of 0 and of every power of two."""
    edges = [0, 1, *(2**n + d for n in range(1, 31) for d in (-1, 0, 1)), 2**31 - 1]
    values = np.array([sign * v for v in edges for sign in (1, -1)], np.int64)
    found = computed("relu", values.view(np.uint64)).view(np.int64)
    assert np.array_equal(found, np.maximum(values, 0))


def test_negative_gives_a_bit() -> None:
    """1 below 0, else 0."""
    values = np.array([-(2**30), -1, 0, 1, 2**30], np.int64)
    assert computed("negative", values.view(np.uint64)).tolist() == [1, 1, 0, 0, 0]


def test_relu_ignores_what_a_failed_rescaling_leaves() -> None:
    """An error of 2^51 or 2^38 stays as large as it was, or goes where the result is 0 anyway."""
    values = np.array([5, -5, 5, -5], np.int64)
    errors = np.array([2**51, 2**51, -(2**38), -(2**38)], np.int64)
    found = computed("relu", (values + errors).view(np.uint64)).view(np.int64)
    assert found.tolist() == [5 + 2**51, 0, 5 - 2**38, 0]


def rescaled(values: Words, put: rehearsal.Put = lambda _, data: data) -> Words:
    """Three parties' rescaling of products: the first shares are the parts."""
    trio, given = rehearsal.parties(put), dealt(values)
    return shares.join(rehearsal.together(lambda n: trio[n].rescaled(given[n][0])))


def test_rescaling_is_one_unit_off_at_most() -> None:
    """For products as large as the limit allows, but for failures of 2^-22 each at most."""
    most = int(ring.LIMIT) << (2 * ring.FRACTION_BITS)
    values = np.random.default_rng(0).integers(-most, most, 1000)
    found = rescaled(values.view(np.uint64)).view(np.int64)
    off = np.abs(found - (values >> ring.FRACTION_BITS))
    assert np.count_nonzero(off > 1) <= 2  # 2.4e-4 are expected: three have p = 2e-12


def test_rescaling_fails_as_often_as_the_bound_says() -> None:
    """|x| 2^-64 of them, by 2^51: 2^-8 of elements of 2^56 do, within five standard deviations."""
    count, chance = 40_000, 2.0**-8
    found = rescaled(np.full(count, 2**56, np.uint64)).view(np.int64)
    off = found - (2**56 >> ring.FRACTION_BITS)
    failed = np.abs(off) > 1
    assert set(np.abs(off[failed]) + 1 >> 50) == {2}  # all by 2^51, give or take a unit
    spread = np.sqrt(count * chance)
    assert abs(failed.sum() - count * chance) < 5 * spread


@pytest.mark.parametrize("product", [0, 1])
def test_a_failed_rescaling_is_seen_at_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: int
) -> None:
    """One failure in each row, in either product: the output is right, or out of range."""
    trio, rng, rows = package(tmp_path), np.random.default_rng(0), 400
    models = [station.model for station in trio.stations]
    values = rng.normal(size=(rows, 6))
    size = trio.stations[0].program.steps[2 * product].size
    failing = (np.arange(rows), rng.integers(0, size, rows))
    errors = (rng.choice([1, -1], rows) << 51).view(np.uint64)
    calls, real = [0, 0, 0], Party.rescaled

    def rescaled(self: Party, part: Words) -> Words:
        found = real(self, part)
        if calls[self.number] == product and self.number != 1:  # slot 0 is with parties 0 and 2
            found[self.number // 2][failing] += errors
        calls[self.number] += 1
        return found

    monkeypatch.setattr(Party, "rescaled", rescaled)
    found = ring.decode(rehearsal.run(models, ring.encode(values)))
    off = np.abs(found - open_outputs(trio.model, values)).max(1)
    is_seen = np.abs(found).max(1) > ring.LIMIT
    assert is_seen.sum() > rows / 4
    assert off[~is_seen].max(initial=0.0) < 0.01


def least_likely(message: bytes) -> float:
    """How unlikely the message's most uneven bit is, were all uniform: a two-sided p-value.

    Every bit of its 64-bit words is counted; the count of ones is binomial, and nearly normal.
    """
    from math import erfc, sqrt

    words = np.frombuffer(message, np.uint64)
    bits = np.unpackbits(words.view(np.uint8).reshape(len(words), 8), axis=1)
    worst = np.abs(bits.mean(0) - 0.5).max() * 2 * np.sqrt(len(words))
    return min(1.0, 64 * erfc(float(worst) / sqrt(2)))


@pytest.mark.parametrize("value", [0.0, 1.0, -100.0])
def test_what_a_party_receives_is_uniform(tmp_path: Path, value: float) -> None:
    """Each bit of each message of each party, whatever the input: false alarms are 1e-6 in all.

    Inputs that are all the same would show in any message that is not masked.
    """
    trio = package(tmp_path)
    seen: list[bytes] = []

    def put(_: int, data: bytes) -> bytes:
        seen.append(data)
        return data

    rows = np.full((1500, 6), value)
    models = [station.model for station in trio.stations]
    found = ring.decode(rehearsal.run(models, ring.encode(rows), put))
    assert np.abs(found - open_outputs(trio.model, rows)).max() < 0.01
    assert len(seen) > 30
    worst = min(map(least_likely, seen))
    assert worst * len(seen) > FALSE_ALARM / 3  # of three inputs


def test_the_test_of_uniformity_sees_a_mask_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without zero sharings, what is sent tells of the value."""
    monkeypatch.setattr(Party, "_zero", lambda _, shape: np.zeros(shape, np.uint64))
    seen: list[bytes] = []
    small = np.full(1500, 3 << 13, np.uint64)
    trio = rehearsal.parties(lambda _, data: (seen.append(data), data)[1])
    rehearsal.together(lambda n: trio[n].rescaled(small if n == 1 else small * np.uint64(0)))
    assert min(map(least_likely, seen)) * len(seen) < FALSE_ALARM


def test_what_packing_deals_is_uniform() -> None:
    """Every party's part of weights that are all the same; the seeds are random by themselves."""
    _, first, second = shares.deal(ring.encode(np.full(4000, 0.25)))
    for part in (first[32:], second[:-32]):
        assert least_likely(part) > FALSE_ALARM / 2
