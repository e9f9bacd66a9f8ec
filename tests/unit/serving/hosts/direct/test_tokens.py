"""Tokens: their ends, their renewal, a key file that is being written."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from directly import Place, request
from marship.serving.hosts.direct.tokens import RefusedError, Tokens


def write(path: Path, key: str, seconds: float = 60) -> None:
    """As TorchServe writes it."""
    ends = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    path.write_text(json.dumps({"inference": {"key": key, "expiration time": ends}}))


@pytest.mark.parametrize(
    "given", [None, b"", b"Bearer", b"Bearer ", b"Bearer x", b"Basic right", b"right"]
)
def test_only_the_token_is_accepted(tmp_path: Path, given: bytes | None) -> None:
    """In its scheme, whose case does not count."""
    write(tmp_path / "k", "right")
    tokens = Tokens(tmp_path / "k")
    tokens.check(b"Bearer right")
    tokens.check(b"bearer right")
    with pytest.raises(RefusedError):
        tokens.check(given)


def test_a_renewed_token_is_accepted_at_once_and_the_old_one_soon_no_more(tmp_path: Path) -> None:
    """A half-written file keeps the last key; a missing one has none."""
    write(tmp_path / "k", "old")
    tokens = Tokens(tmp_path / "k")
    tokens.check(b"Bearer old")
    (tmp_path / "k").write_text('{"inference": {"key"')
    tokens._look(0.0)
    tokens.check(b"Bearer old")
    write(tmp_path / "k", "new")
    tokens.check(b"Bearer new")
    with pytest.raises(RefusedError):
        tokens.check(b"Bearer old")
    (tmp_path / "k").unlink()
    tokens._look(0.0)
    with pytest.raises(RefusedError):
        tokens.check(b"Bearer new")


def test_a_key_file_that_was_away_for_a_moment_is_read_again(tmp_path: Path) -> None:
    """It comes back as the same file."""
    write(tmp_path / "k", "right")
    tokens = Tokens(tmp_path / "k")
    tokens.check(b"Bearer right")
    (tmp_path / "k").rename(tmp_path / "away")
    tokens._look(0.0)
    with pytest.raises(RefusedError):
        tokens.check(b"Bearer right")
    (tmp_path / "away").rename(tmp_path / "k")
    tokens.check(b"Bearer right")


def test_an_expired_token_is_refused(tmp_path: Path) -> None:
    """By the clock, whatever the file's age."""
    write(tmp_path / "k", "right", seconds=-1)
    with pytest.raises(RefusedError, match="expired"):
        Tokens(tmp_path / "k").check(b"Bearer right")


def test_a_token_that_is_renewed_meanwhile_is_accepted_before_the_clocks_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe may notice later that the clock was set; the token ends soon all the same."""
    write(tmp_path / "k", "old", seconds=-1)
    tokens = Tokens(tmp_path / "k")
    with pytest.raises(RefusedError):
        tokens.check(b"Bearer old")
    write(tmp_path / "k", "new", seconds=-1)
    tokens.check(b"Bearer new")
    later = time.monotonic() + 3
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(RefusedError):
        tokens.check(b"Bearer new")


def test_health_needs_no_token_and_all_else_does(tmp_path: Path, loaded: object) -> None:
    """Also a model that there is not: names are not told to strangers."""
    write(tmp_path / "k", "right")
    made = Place(tmp_path / "k")
    try:
        made.add(loaded)  # type: ignore[arg-type]
        made.follow(m=("1.0",))
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/ping"):
            assert made.ask(path, b"", "GET").status == 200
        for path in ("/predictions/m", "/predictions/x", "/v2", "/v2/models/m", "/nowhere"):
            assert made.ask(path).status == 401, path
        with made.line() as line:
            line.send(request(headers={"Authorization": "Bearer right"}))
            assert line.read().status == 200
    finally:
        made.close()
