"""The configuration that `marship proxy` writes, and what it does not write."""

import re
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from marship.cli import app
from marship.engines.torchserve import config
from marship.errors import NotRunningError, UsageError
from marship.operate import certificate, proxy
from marship.operate.proxy import ProxySettings

SAMPLE = Path(__file__).parents[3] / "deploy" / "nginx" / "nginx.conf"
TLS = {
    "certificate": Path("/etc/marship/tls/fullchain.pem"),
    "certificate_key": Path("/etc/marship/tls/privkey.pem"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a server that runs with the packaged settings; also where we are."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "config.properties").write_text(config.PACKAGED.read_text())
    return folder


def test_the_sample_is_what_the_command_writes(tmp_path: Path, home: Path) -> None:
    """So an operator reads in the repository what will be written, line by line."""
    words = ["proxy", "recommend", "tagger", "--home", str(home), "--out", str(tmp_path / "out")]
    words += [f"--{name.replace('_', '-')}={path}" for name, path in TLS.items()]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "nginx.conf").read_text() == SAMPLE.read_text()


@pytest.mark.parametrize("name", ["h" * 120, "a,b"])
def test_traces_need_a_home_whose_socket_nginx_can_name(
    home: Path, tmp_path: Path, name: str
) -> None:
    """One clear line, and nothing is written."""
    other = home.rename(tmp_path / name)
    settings = ProxySettings(home=other, out=tmp_path / "out", traces=True, **TLS)
    with pytest.raises(UsageError, match="must have no comma and at most 96 bytes"):
        proxy.write(settings, ["a"])
    assert not (tmp_path / "out" / "nginx.conf").exists()


def test_it_follows_the_servers_settings(home: Path) -> None:
    """Its addresses and its largest body; names mean themselves in patterns."""
    source = home / "config.properties"
    changed = source.read_text().replace("127.0.0.1:8079", "127.0.0.1:1234")
    source.write_text(changed.replace("max_request_size=16777216", "max_request_size=77"))
    done = proxy.write(ProxySettings(home=home, **TLS), ["b.c", "a", "a"])
    text = done.config.read_text()
    for number, name in enumerate((r"a", r"b\.c")):
        assert f'"~^{name}\\z" marship_model_{number};' in text
    upstream = (
        "    server 127.0.0.1:1234 max_fails=0;\n        server 127.0.0.1:8080 max_fails=0 backup;"
    )
    assert text.count(upstream) == 3
    assert "client_max_body_size 77;" in text
    assert r"(?<model>a|b\.c)(?<version>" in text
    assert "of 77 bytes at most" in text
    assert done.config.parent.stat().st_mode & 0o777 == 0o700


def test_the_page_is_passed_on_where_that_is_set(home: Path) -> None:
    """Off as shipped; its document is of the exposed models; it asks no server without a page."""
    settings = ProxySettings(home=home, **TLS, page=True)
    text = proxy.write(settings, ["b.c", "a"]).config.read_text()
    assert 'set $marship_exposed "a,b.c";' in text
    upstream = text.partition("upstream marship_page {")[2].partition("}")[0]
    assert "127.0.0.1:8079" in upstream
    assert "backup" not in upstream
    assert (
        "marship_page" not in proxy.write(ProxySettings(home=home, **TLS), ["a"]).config.read_text()
    )
    source = home / "config.properties"
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(line for line in lines if not line.startswith("direct_address")))
    with pytest.raises(UsageError, match="page must have a server with a direct address"):
        proxy.write(settings, ["a"])


def test_without_a_direct_address_it_passes_on_to_torchserve(home: Path) -> None:
    """As with `serve --no-direct`."""
    source = home / "config.properties"
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join(line for line in lines if not line.startswith("direct_address")))
    text = proxy.write(ProxySettings(home=home, **TLS), ["a"]).config.read_text()
    assert text.count("server 127.0.0.1:8080 max_fails=0;") == 2
    assert "max_fails=0 backup" not in text


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ({}, [], "models that clients may use must be named"),
        ({}, ["a|.*"], r"a model's name must be of letters"),
        ({}, ["tokens"], "must not start with token"),
        ({"listen": "example.org:443"}, ["a"], "listen must be a port or address:port"),
        ({"listen": "443 default_server"}, ["a"], "listen must be a port"),
        ({"listen": "70000"}, ["a"], "listen must be a port"),
        ({"certificate": None}, ["a"], "certificate and certificate_key must both be given"),
        ({"certificate_key": Path('/a"; }')}, ["a"], r"a path in nginx.conf must be of letters"),
        ({"out": Path("$document_root")}, ["a"], r"a path in nginx.conf must be of letters"),
    ],
)
def test_what_cannot_be_meant(
    home: Path, changes: dict[str, object], names: list[str], message: str
) -> None:
    """The error says which setting, and nothing is written."""
    settings = ProxySettings(**{"home": home, "out": home / "out", **TLS, **changes})
    with pytest.raises(UsageError, match=message):
        proxy.write(settings, names)
    assert not (home / "out" / "nginx.conf").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("authorization=false", "authorization=true", "the server must require tokens"),
        ("inference_address=http:", "inference_address=https:", "must begin with http://"),
    ],
)
def test_a_server_that_the_proxy_cannot_guard(home: Path, old: str, new: str, message: str) -> None:
    """Without tokens everybody could send requests; TLS ends at the proxy."""
    source = home / "config.properties"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        proxy.write(ProxySettings(home=home, **TLS), ["a"])


@pytest.mark.parametrize(("mode", "is_taken"), [(0o600, True), (0o640, True), (0o644, False)])
def test_a_private_key_that_all_users_can_read_is_refused(
    home: Path, mode: int, is_taken: bool
) -> None:
    """A group may read it; the error says what to do, and nothing is written."""
    key = home / "privkey.pem"
    key.touch()
    key.chmod(mode)
    settings = ProxySettings(home=home, out=home / "out", **{**TLS, "certificate_key": key})
    if is_taken:
        proxy.write(settings, ["a"])
    else:
        with pytest.raises(UsageError, match=r"privkey\.pem must be closed .* 0644. .*chmod o= "):
            proxy.write(settings, ["a"])
    assert (home / "out" / "nginx.conf").exists() == is_taken


def test_a_name_that_no_archive_has_is_reported(tmp_path: Path, home: Path) -> None:
    """It is let in all the same, since the proxy may be written first; known ones are not told."""
    (tmp_path / "model_store").mkdir()
    (tmp_path / "model_store" / "tagger.mar").touch()
    words = ["proxy", "--home", str(home), "--self-signed", "tagger"]
    assert "advice" not in CliRunner().invoke(app, words).stderr
    done = CliRunner().invoke(app, [*words, "tager", "recomend"])
    assert done.exit_code == 0
    assert "no archive in model_store, is named tager or recomend." in done.stderr
    assert "recomend|tager|tagger" in (tmp_path / "proxy" / "nginx.conf").read_text()


def test_without_names_a_server_must_run(home: Path) -> None:
    """Its registered models are taken."""
    done = CliRunner().invoke(app, ["proxy", "--home", str(home), "--self-signed"])
    assert isinstance(done.exception, NotRunningError)


def test_what_nginx_says_is_json_that_its_quotes_hold() -> None:
    """No message ends a string of nginx or of JSON, or names a variable."""
    for _, message in proxy.REFUSALS.values():
        assert not re.search(r"['\"\\$%]", message)


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    """For localhost alone, its key for its owner alone, and made anew each time."""
    chain, key = certificate.self_signed(tmp_path)
    made = x509.load_pem_x509_certificate(chain.read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert key.stat().st_mode & 0o777 == 0o600
    certificate.self_signed(tmp_path)
    assert x509.load_pem_x509_certificate(chain.read_bytes()).serial_number != made.serial_number
