"""nginx in front of a server: TLS ends there, and connections to the server stay open."""

import os
import shutil
import subprocess
from pathlib import Path

from marship.errors import UsageError
from marship.operate import certificate

_CONFIG = """
pid nginx.pid;
error_log error.log warn;
worker_processes {workers};
daemon off;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream server {{
        server {backend};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        keepalive_requests 100000000;
        client_max_body_size 16m;
        client_body_buffer_size 1m;
        location / {{
            proxy_pass http://server;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffers 16 64k;
            proxy_busy_buffers_size 128k;
        }}
    }}
}}
"""


def start(folder: Path, port: int, backend: str) -> int:
    """Start it with a certificate of its own; the process of its master.

    Args:
        folder: For its files.
        port: Where it listens.
        backend: Host and port of the server.

    Raises:
        UsageError: nginx is not installed.
    """
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        raise UsageError("nginx must be on the PATH, got none. Run: apt-get install nginx")
    folder.mkdir()
    chain, key = certificate.self_signed(folder)
    text = _CONFIG.format(
        workers=len(os.sched_getaffinity(0)), port=port, backend=backend, certificate=chain, key=key
    )
    config = folder / "nginx.conf"
    config.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    command = [program, "-p", str(folder), "-c", str(config)]
    with (folder / "console.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ).pid
