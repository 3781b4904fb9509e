"""The page: this machine alone, the token alone, and what make hands to it."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from skillstack_helpers import SkillStackError
from skillstack_helpers.lab import page

SERVE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from skillstack_helpers.lab import page; "
SERVE += "page.serve([\"print('hello' + 'world')\"], int(sys.argv[1]), lambda a: print(a, flush=1))"
NOBODY = "12345678-1234-1234-1234-123456789012"
SOCKET = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
    "Sec-WebSocket-Version": "13",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A page that is served: its port, its token, the process, and its temporary folder."""
    port, place = free_port(), tmp_path_factory.mktemp("served")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)], start_new_session=True, text=True,
        stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(place)},
    )  # fmt: skip
    address = process.stdout.readline().strip()
    yield port, address.partition(f"http://127.0.0.1:{port}/?token=")[2], process, place
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


def ask(port: int, path: str, method: str = "GET", host: str = "", **headers) -> tuple[int, str]:
    """Status and text of a raw request; `Cookie`, `Origin` and whatever else is given is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    told = "" if answer.status == 101 else answer.read().decode()
    told = f"{answer.getheader('Set-Cookie') or ''}\n{told}"
    connection.close()
    return answer.status, told


@pytest.fixture(scope="module")
def opened(server):
    """The kernel and the cookie of a visit with the token."""
    port, token, *_ = server
    status, told = ask(port, f"/?token={token}")
    assert status == 200 and "helloworld" in told and token not in told
    return re.search(r'"kernelId": ?"([^"]+)"', told)[1], told.partition(";")[0]


def test_every_request_needs_the_token(server, opened):
    port, token, *_ = server
    kernel, cookie = opened
    assert len(token) >= 32
    for wrong in ("", "?token=", "?token=wrong", f"?token={token}x"):
        status, told = ask(port, f"/{wrong}")
        assert status == 403 and "hello" not in told and "open the address that was pri" in told
        for path in (f"/api/kernels/{kernel}", "/api/kernels", "/login", "/voila/api/themes/x"):
            assert ask(port, path + wrong)[0] == 403, path
        assert ask(port, f"/api/kernels/{kernel}/channels{wrong}", **SOCKET)[0] == 403
        for path in (f"/api/kernels/{kernel}", f"/voila/api/shutdown/{kernel}"):
            assert ask(port, path + wrong, "DELETE" if "api/k" in path else "POST")[0] == 403
    assert ask(port, "/voila/files/a.png")[0] == 403
    assert ask(port, f"/api/kernels/{kernel}", Authorization=f"token {token}")[0] == 200
    for known in ({"Cookie": cookie}, {"Authorization": f"token {token}"}):
        assert ask(port, f"/api/kernels/{kernel}/channels", **SOCKET, **known)[0] == 101
    forged = {"Cookie": cookie[:-8] + "00000000"}
    assert ask(port, "/", **forged)[0] == 403


def test_no_other_host_name_and_no_other_sites_scripts(server, opened):
    port, token, *_ = server
    kernel, cookie = opened
    for path in (f"/api/kernels/{kernel}", "/", f"/api/kernels/{kernel}/channels"):
        headers = SOCKET if path.endswith("channels") else {}
        for host in ("evil.example", f"evil.example:{port}", "192.0.2.1", "127.0.0.1.evil.example"):
            assert ask(port, f"{path}?token={token}", host=host, **headers)[0] == 403, host
            assert ask(port, path, host=host, Cookie=cookie, **headers)[0] == 403, host
    for host in (f"localhost:{port}", f"[::1]:{port}"):
        assert ask(port, f"/api/kernels/{kernel}?token={token}", host=host)[0] == 200
    foreign = SOCKET | {"Cookie": cookie, "Origin": "http://evil.example"}
    assert ask(port, f"/api/kernels/{kernel}/channels", **foreign)[0] == 403


def test_it_listens_on_loopback_alone(server):
    port = server[0]
    assert page.answers(port)
    with socket.socket() as probe:  # of this machine too, so that all addresses would answer here
        assert probe.connect_ex(("127.0.0.2", port)) != 0


def test_the_token_is_in_no_process_list_and_in_no_file(server):
    _, token, process, place = server
    psutil = pytest.importorskip("psutil")
    running = psutil.Process(process.pid)
    for one in (running, *running.children(recursive=True)):
        assert token not in " ".join(one.cmdline())
    for path in place.rglob("*"):
        assert not path.is_file() or token not in path.read_text(errors="replace"), path
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.parent != place


def test_the_tokens_file_was_its_owners_alone(monkeypatch):
    seen = []

    class Server:
        def __init__(self, command, **_):
            (config,) = Path(command[-1].partition("=")[2]).glob("voila.json")
            seen.append((stat.S_IMODE(config.stat().st_mode), json.loads(config.read_text())))
            seen.append(" ".join(command))

        def poll(self):
            return 3

        def wait(self):
            return 3

        def terminate(self):
            pass

    monkeypatch.setattr(subprocess, "Popen", Server)
    assert page.serve([], free_port()) == 3
    (mode, config), command = seen
    assert mode == 0o600 and config["Voila"]["token"] not in command
    assert config["Voila"]["port_retries"] == 0


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SkillStackError, match=r"port \d+ is in use"):
            page.serve([], taken.getsockname()[1])


# ---------------------------------------------------------------------- make

PYTHON = """#!/bin/sh
{ for given in "$@"; do printf '%s\\n' "$given"; done; printf 'demo %s\\n\\n' "$SKILLSTACK_DEMO"
} >> "$(dirname "$0")/called"
"""


@pytest.mark.parametrize("demo", ["results/demo", None, "$(touch taken)`touch taken`"])
def test_make_in_a_folder_with_spaces_and_quotes(demo, tmp_path):
    root = tmp_path / """it's "a" dir"""
    (root / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, root / name)
    for name in ("requirements.txt", "requirements-embedded.txt", ".venv/.installed"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / "bin" / "python").write_text(PYTHON)
    (root / "bin" / "python").chmod(0o755)
    demo = demo or str(root / "a demo")
    given = ["make", "inspect", "picture", f"BIN={root / 'bin'}"]
    given += [f"DEMO={demo.replace('$', '$$')}", f"INSPECT=--model {shlex.quote('a b')}"]
    done = subprocess.run(given, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    called = (root / "bin" / "called").read_text().split("\n\n")
    train, routers, report, inspect, picture, _ = (call.splitlines() for call in called)
    assert train[:4] == ["-m", "papermill", "notebooks/01_train_stack.ipynb",
                         f"{demo}/01_train_stack.ipynb"]  # fmt: skip
    assert train[train.index("output_dir") + 1] == demo
    assert routers[0] == "-c" and routers[-2] == demo
    compile("\n".join(routers[1:-2]), "Makefile", "exec")
    assert demo not in "\n".join(routers[1:-2]) or demo == "results/demo"
    assert report[:3] == ["results/report", "show", demo]
    assert inspect[1:-1] == ["skillstack_helpers.lab.widgets", demo, "--port", "8866",
                             "--model", "a b"]  # fmt: skip
    assert picture[-1] == f"demo {demo}"
    assert not (root / "taken").exists() and root.joinpath(demo).is_dir()
