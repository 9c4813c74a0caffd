"""How `safeqwen demo` starts and ends."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest


def start(port, folder):
    command = [sys.executable, "-m", "safeqwen", "demo", "--port", str(port)]
    variables = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("port", ["taken", 99_999])
def test_a_port_that_cannot_be_had_is_one_line(port, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if port == "taken" else port
        process = start(port, tmp_path)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in told
    assert told.splitlines()[-1].startswith(f"safeqwen: cannot listen at 127.0.0.1, port {port}: taken")
    assert not [*tmp_path.glob("safeqwen-demo-*")]


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT])
def test_its_folder_goes_with_it(ended_by, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(port, tmp_path)
    process.stdout.readline()  # "Running on"
    assert httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files=[("files", ("a.png", b"a"))]).is_success
    assert [*tmp_path.glob("safeqwen-demo-*/*/a.png")]
    process.send_signal(ended_by)
    process.communicate(timeout=60)
    assert process.returncode == (143 if ended_by == signal.SIGTERM else 0)
    assert not [*tmp_path.glob("safeqwen-demo-*")]
