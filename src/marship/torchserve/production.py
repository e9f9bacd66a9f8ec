"""What must hold of a server that serves in earnest: `marship serve --profile production`.

The packaged settings hold it already; a file of one's own, a shared folder or an environment
may not. What contradicts it is refused before anything starts, in one line.
"""

import ipaddress
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from marship.errors import ServerError, UsageError
from marship.torchserve import config as configs
from marship.torchserve.environment import check_named
from marship.torchserve.home import Home

PROFILE = "production"

_MUST_BE = {  # where a line is missing TorchServe takes the same
    "disable_token_authorization": ("false", "Every call must prove who asks."),
    "enable_envvars_config": ("false", "The environment would override this file."),
    "install_py_dep_per_model": ("false", "A pip install would run code that nobody checked."),
    "use_env_allowed_urls": ("false", "The environment would say where archives come from."),
}
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN_TO_OTHERS = 0o077


def check_profile(profile: str | None, keep_env: Sequence[str]) -> None:
    """Make sure that the profile is one, and that what goes with it comes with it.

    Raises:
        UsageError: It is not.
    """
    if profile not in (None, PROFILE):
        raise UsageError(
            f"profile must be {PROFILE}, got {profile!r}. How a model batches is said when it "
            "is packed or registered."
        )
    if keep_env and profile is None:
        raise UsageError(
            f"keep_env must come with --profile {PROFILE}, got it alone: workers see the whole "
            "environment then."
        )
    check_named(keep_env)


def check(home: Home, config: Path, values: Mapping[str, str], trust: Path | None) -> None:
    """Make sure that nothing lets anybody in.

    Args:
        home: The server's, which is there.
        config: The file that the settings come from.
        values: The resolved settings.
        trust: The folder with the keys that archives must be signed with.

    Raises:
        UsageError: Something does; the message says what, and what to do.
    """
    store = Path(values["model_store"])
    _check_values(values, home.verified if trust else store)
    _check_ours("the home", home.path)
    _check_ours("the configuration", config)
    if trust is None:
        _check_ours("the model store", store, *filter(Path.exists, store.glob("*")))
    else:  # whoever writes to the store cannot sign
        _check_ours("the trust folder", trust, *trust.glob("*"))


def check_tokens(key_file: Path) -> None:
    """Make sure that nobody else reads the tokens.

    Raises:
        ServerError: Others may.
    """
    mode = stat.S_IMODE(key_file.stat().st_mode)
    if mode & _OPEN_TO_OTHERS:
        raise ServerError(
            f"{key_file} must be readable by its owner alone in production, got mode {mode:04o}. "
            "Does its file system keep permissions?"
        )


def advice(trust: Path | None) -> Iterator[str]:
    """What is allowed and still better otherwise."""
    if os.geteuid() == 0:
        yield "runs as root, and so does every model's code: start it as a user of its own"
    if trust is None:
        yield "archives need no signature: name the folder of keys that count with --trust"


def _check_values(values: Mapping[str, str], readable: Path) -> None:
    for name, host, _ in configs.listeners(values):
        if not _is_loopback(host):
            raise UsageError(
                f"{name} must be on loopback in production, got {host}. Set it to 127.0.0.1, and "
                "put a proxy in front: marship proxy"
            )
    for name, (wanted, reason) in _MUST_BE.items():
        if values.get(name, wanted) != wanted:
            raise UsageError(f"{name} must be {wanted} in production, got {values[name]}. {reason}")
    if values.get("allowed_urls") != configs.allowed_urls(readable):
        raise UsageError(
            f"allowed_urls must name the model store alone in production, got "
            f"{values.get('allowed_urls')!r}. Leave the line as it is packaged."
        )
    if "model_snapshot" in values:
        raise UsageError(
            "model_snapshot must not be set in production, got one: it registers the models of "
            "an earlier run. Remove the line."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_ours(what: str, *paths: Path) -> None:
    """Refuse what others may write to, or exchange by way of a folder above it."""
    named = [path.resolve() for path in paths]
    for place in dict.fromkeys(above for path in named for above in (path, *path.parents)):
        status = place.stat()
        # in a folder such as /tmp everybody makes files, and removes none but their own
        is_shared = place not in named and status.st_mode & stat.S_ISVTX
        if status.st_mode & _WRITABLE_BY_OTHERS and not is_shared:
            raise UsageError(
                f"{what} must be writable by its owner alone in production, got {place} of mode "
                f"{stat.S_IMODE(status.st_mode):04o}. Run: chmod go-w {place}"
            )
        if status.st_uid not in (0, os.geteuid()):
            raise UsageError(
                f"{what} must belong to the server's user or to root in production, got {place} "
                f"of user {status.st_uid}. Run: chown {os.geteuid()} {place}"
            )
