"""A page of its own: cells of a notebook, served by Voilà to this machine alone and to nobody who
does not have the token in the printed address."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jupyter_server.auth.identity import IdentityProvider
from tornado import web

from ..errors import SkillStackError


class TokenOnly(IdentityProvider):
    """Whoever brings neither the token nor the cookie that it was answered with gets 403; there is
    no page to log in on."""

    login_available = logout_available = False

    async def get_user(self, handler):
        user = await super().get_user(handler)
        if user is None:
            handler.set_status(403)
            raise web.Finish("403: open the address that was printed, with its token")
        return user


def serve(
    cells: Sequence[str], port: int, ready: Callable[[str], None] = print, title: str = "SkillStack"
) -> int:
    """Serve the output of cells on 127.0.0.1 until it is stopped; returns Voilà's exit status.

    ready: told the address, with a new token, as soon as the server answers. Every visit runs the
    cells in a kernel of its own; kernels that nobody has used for ten minutes are stopped.
    """
    import nbformat

    if answers(port):
        raise SkillStackError(f"port {port} is in use: give another one")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    page.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": ""}
    token = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as place:
        path, config = Path(place) / f"{title}.ipynb", Path(place) / "voila.json"
        nbformat.write(page, path)
        config.touch(mode=0o600)  # a file, since every user can read what processes are called with
        config.write_text(json.dumps(_settings(port, token)))
        command = [sys.executable, "-m", "voila", str(path), f"--Voila.config_file_paths={place}"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while server.poll() is None:
                if answers(port):
                    config.unlink()
                    ready(f"http://127.0.0.1:{port}/?token={token}")
                    break
                time.sleep(0.1)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()


def answers(port: int) -> bool:
    """Whether anything listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _settings(port: int, token: str) -> dict:
    """Voilà's settings: only its own scripts and styles, which are public, need no token."""
    tornado = {
        # Voilà answers to any host name unless told otherwise: another site's name that is made to
        # lead here would make its scripts this page's.
        "allow_remote_access": False,
        "headers": {"Referrer-Policy": "same-origin"},  # the address has the token
    }
    return {
        "Voila": {
            "ip": "127.0.0.1",
            "port": port,
            "port_retries": 0,  # never on another port than the one whose address is printed
            "open_browser": False,
            "token": token,
            "identity_provider_class": f"{__name__}.{TokenOnly.__name__}",
            "tornado_settings": tornado,
        },
        "VoilaConfiguration": {"file_allowlist": []},  # files beside the notebook
        "MappingKernelManager": {"cull_idle_timeout": 600, "cull_interval": 60},
    }
