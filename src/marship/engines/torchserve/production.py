"""What must hold of a server that serves in earnest: `marship serve --profile production`.

The packaged settings hold it already; a file of one's own, a shared folder or an environment
may not. What contradicts it is refused before anything starts, in one line.
"""

import ipaddress
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from marship.engines.torchserve import config as configs
from marship.engines.torchserve.environment import check_named
from marship.engines.torchserve.home import Home
from marship.errors import ServerError, UsageError
from marship.trust import ownership

PROFILE = "production"

_MUST_BE = {  # where a line is missing TorchServe takes the same
    "disable_token_authorization": ("false", "Every call must prove who asks."),
    "enable_envvars_config": ("false", "The environment would override this file."),
    "install_py_dep_per_model": ("false", "A pip install would run code that nobody checked."),
    "use_env_allowed_urls": ("false", "The environment would say where archives come from."),
}
_MUST_NOT_BE_SET = {
    "model_snapshot": "It registers the models of an earlier run.",
    "system_metrics_cmd": "It is a command that runs again and again.",
}
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


def check(
    home: Home, config: Path, values: Mapping[str, str], seal_key: str | None, *, is_signed: bool
) -> None:
    """Make sure that nothing lets anybody in.

    Args:
        home: The server's, which is there.
        config: The file that the settings come from.
        values: The resolved settings.
        seal_key: The settled source of the key to sealed models; None is none.
        is_signed: Whether archives must be signed: whoever writes to the store cannot do that.

    Raises:
        UsageError: Something does; the message says what, and what to do.
    """
    store = Path(values["model_store"])
    _check_values(values, home.verified if is_signed else store)
    ownership.check("the home", home.path)
    ownership.check("the configuration", config)
    if not is_signed:
        ownership.check("the model store", store, *filter(Path.exists, store.glob("*")))
    _check_workflows(home, values)
    _check_seal_key(seal_key)


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
            f"{values.get('allowed_urls')!r}. Write allowed_urls=$$MARSHIP_ARCHIVES$$"
        )
    for name, reason in _MUST_NOT_BE_SET.items():
        if name in values:
            raise UsageError(
                f"{name} must not be set in production, got one. {reason} Remove the line."
            )
    if "*" in values.get("cors_allowed_origin", ""):
        raise UsageError(
            "cors_allowed_origin must name one origin in production, got '*': the pages of any "
            "site could ask. Name your site's, or remove the line."
        )


def _check_workflows(home: Home, values: Mapping[str, str]) -> None:
    """A workflow is code: its store is in the home, or else ours; without one it is the models'."""
    store = home.path / values.get("workflow_store", "workflows")  # TorchServe runs in the home
    if not store.resolve().is_relative_to(home.path.resolve()):
        ownership.check("the workflow store", store)


def _check_seal_key(source: str | None) -> None:
    form, _, rest = (source or "").partition(":")
    if form in ("file", "command"):
        ownership.check("the seal key", Path(rest if form == "file" else shlex.split(rest)[0]))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
