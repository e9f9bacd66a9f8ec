"""The checks of a server in production: `marship serve --profile production`.

The packaged settings pass; custom settings, a shared folder or the environment may not. A
violation is reported in one line before anything starts.
"""

import ipaddress
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from marship.engines.home import Home
from marship.engines.torchserve import config as configs
from marship.engines.torchserve.environment import check_named
from marship.errors import ServerError, UsageError
from marship.trust import ownership

PROFILE = "production"

_MUST_BE = {  # these are also TorchServe's defaults
    "disable_token_authorization": ("false", "Every call must carry a token."),
    "enable_envvars_config": ("false", "The environment would override this file."),
    "install_py_dep_per_model": ("false", "A pip install would run unverified code."),
    "use_env_allowed_urls": ("false", "The environment would set allowed_urls."),
}
_MUST_NOT_BE_SET = {
    "model_snapshot": "It registers the models of an earlier run.",
    "system_metrics_cmd": "It is a command that runs periodically.",
}
_OPEN_TO_OTHERS = 0o077


def check_profile(profile: str | None, keep_env: Sequence[str]) -> None:
    """Check that the profile exists, and that options that require it come with it.

    Raises:
        UsageError: A rule is violated.
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
    """Check files, settings and the source of the seal key.

    Args:
        home: The server's home, which exists.
        config: The settings file.
        values: The resolved settings.
        seal_key: The resolved source of the key of sealed models; None without.
        is_signed: Whether archives must be signed: then write access to the store is harmless.

    Raises:
        UsageError: A rule is violated; the message says which, and what to do.
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
    """Check that only the owner can read the tokens.

    Raises:
        ServerError: Others can.
    """
    mode = stat.S_IMODE(key_file.stat().st_mode)
    if mode & _OPEN_TO_OTHERS:
        raise ServerError(
            f"{key_file} must be readable by its owner alone in production, got mode {mode:04o}. "
            "Does its file system keep permissions?"
        )


def advice(trust: Path | None) -> Iterator[str]:
    """Recommendations that are not enforced."""
    if os.geteuid() == 0:
        yield "runs as root, and so does every model's code: start it as a dedicated user"
    if trust is None:
        yield "archives need no signature: set the folder of trusted keys with --trust"


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
    """Workflows are code: check their store, which is the model store by default."""
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
