"""URLs lead to the public internet only, unless the caller allows more."""

import http.server
import io
import threading

import pytest
from PIL import Image

from safeqwen.pictures import UnreadableImage, read_bytes, read_image
from safeqwen.pictures import fetch as fetch_module
from safeqwen.pictures.fetch import is_public


class Server(http.server.BaseHTTPRequestHandler):
    asked = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if self.path == "/inside":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_address[1]}/picture")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        Image.new("RGB", (20, 20)).save(self.wfile, "BMP")


@pytest.fixture
def port():
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def refusal(source, **kwargs):
    with pytest.raises(UnreadableImage) as caught:
        read_image(source, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_by_whatever_name(port, host):
    message = refusal(f"http://{host}:{port}/picture")
    assert "inside a private network" in message and "private_networks=True" in message
    assert Server.asked == []


def test_private_networks_are_asked_when_allowed(port):
    assert len(read_image(f"http://127.0.0.1:{port}/picture", private_networks=True)) == 1
    assert len(read_image(f"http://127.0.0.1:{port}/inside", private_networks=True)) == 1


def test_a_redirect_into_the_network_is_refused(port, monkeypatch):
    monkeypatch.setattr(fetch_module, "is_public", lambda address: address == "127.0.0.1")  # 127.0.0.2 stays inside
    assert "leads to 127.0.0.2, inside a private network" in refusal(f"http://127.0.0.1:{port}/inside")
    assert Server.asked == ["/inside"]


def test_the_address_connected_to_counts_and_not_what_the_name_was_before(port, monkeypatch):
    answers = iter(["93.184.216.34"])  # to the check before; then the name resolves as it really does
    real = fetch_module.socket.getaddrinfo

    def rebinding(host, *args, **kwargs):
        first = next(answers, None)
        return [(2, 1, 6, "", (first, 80))] if first else real(host, *args, **kwargs)

    monkeypatch.setattr(fetch_module.socket, "getaddrinfo", rebinding)
    assert "inside a private network" in refusal(f"http://localhost:{port}/picture")
    assert Server.asked == []


def test_proxies_are_asked_only_where_private_networks_are_allowed(port, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert "cannot be fetched" in refusal("http://nowhere.invalid/picture", timeout_s=5)
    assert Server.asked == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.8.8.8",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::"),
    ],
)
def test_these_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_these_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:se/secret@bucket/a.png",
        "s3://key:s?secret@bucket/a.png",
        "s3://key:s#secret@bucket/a.png",
        "ftp://me:secret@host/a.png?key=secret",
        "ftp://me:sec/ret@host/a.png#secret",
        "gs:me:secret@host/a.png",
    ],
)
def test_secrets_in_urls_that_are_not_fetched_are_not_printed(url):
    message = refusal(url)
    assert "only http and https are fetched" in message
    assert "secret" not in message and "ret@" not in message and "key" not in message and "/a.png" in message


def test_the_door_for_servers_opens_bytes_only(tmp_path, port):
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    assert len(read_bytes(file.getvalue())) == len(read_bytes(bytearray(file.getvalue()))) == 1
    for source in (
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        f"http://127.0.0.1:{port}/picture",
        file,
        {"path": ""},
    ):
        with pytest.raises(TypeError, match="expected the bytes"):
            read_bytes(source)
    with pytest.raises(UnreadableImage, match="upload 7: is none of the formats"):
        read_bytes(str(tmp_path / "a.png").encode(), name="upload 7")
    assert Server.asked == []
