"""
The bytes behind an http(s) URL, within one deadline, and not from inside the network unless that was allowed.

Whoever may name a URL could otherwise read what only this machine can reach: a cloud's metadata, an admin page.
"""

import contextlib
import http
import ipaddress
import re
import socket
import threading

import httpx

from safeqwen.pictures.errors import UnreadableImage, check_bytes, one_line, without_secrets


MAX_REDIRECTS = 5


def fetch(url, timeout_s, max_bytes, private_networks):
    """
    Returns the body of an http(s) URL and the URL's name for messages, which holds no secrets.

    Args:
        timeout_s (`float`): seconds from resolving the name to the last byte, redirects included.
        max_bytes (`int`): size of the body.
        private_networks (`bool`): whether addresses that are not public may be connected to. Only then the proxies of
            the environment are asked: what address a proxy connects to cannot be checked.

    Raises:
        UnreadableImage: if no whole body came in time, the server answered 400 or more, or an address is not allowed.
    """
    try:
        name, parsed = without_secrets(url.strip()), httpx.URL(url.strip())
        if not parsed.host or parsed.port == 0 or parsed.port and parsed.port > 65535:
            raise ValueError
    except (ValueError, httpx.InvalidURL):
        raise UnreadableImage(f"<URL of {len(url)} characters>: is not valid; check host and port") from None
    download = _Download(parsed, name, timeout_s, max_bytes, private_networks)
    download.start()
    download.join(timeout_s)
    error = download.error
    if download.is_alive():  # what came so far is no picture, though the thread may take the closed socket for its end
        download.abandon()
        error = TimeoutError()
    if error is None:
        return download.data, name
    raise error if isinstance(error, UnreadableImage) else UnreadableImage(f"{name}: {_reason(error, timeout_s)}")


class _Download(threading.Thread):
    """Fetches aside: no socket's timeout bounds the whole of resolving, connecting, headers and body."""

    def __init__(self, url, name, timeout_s, max_bytes, private_networks):
        super().__init__(daemon=True)
        self.url, self.name_of_url, self.timeout_s, self.max_bytes = url, name, timeout_s, max_bytes
        self.private_networks = private_networks
        self.data = self.error = None
        self.abandoned = False
        self.sockets = []

    def run(self):
        try:
            self.data = self._fetch()
        except Exception as error:  # told to the thread that waits
            self.error = error

    def _fetch(self):
        settings = {"timeout": self.timeout_s, "follow_redirects": True, "max_redirects": MAX_REDIRECTS}
        headers = {"User-Agent": "safeqwen", "Accept": "image/*", "Accept-Encoding": "identity"}
        with httpx.Client(**settings, headers=headers, trust_env=self.private_networks) as client:
            with client.stream("GET", self.url, extensions={"trace": self._trace}) as response:
                response.raise_for_status()
                check_bytes(int(response.headers.get("Content-Length") or 0), self.name_of_url, self.max_bytes)
                data = bytearray()
                for piece in response.iter_raw():
                    data += piece
                    check_bytes(len(data), self.name_of_url, self.max_bytes)
                    if self.abandoned:
                        return None
                return bytes(data)

    def _trace(self, event, info):
        """Called by httpx at every step: refuses an address before and after connecting, before anything is sent."""
        if event == "connection.connect_tcp.started" and not self.private_networks:
            for *_, address in socket.getaddrinfo(info["host"], info["port"], type=socket.SOCK_STREAM):
                self._check_address(address[0])
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            stream = info["return_value"]
            self.sockets.append(stream.get_extra_info("socket"))
            if not self.private_networks:  # the name may now resolve to another address than just before
                self._check_address(stream.get_extra_info("server_addr")[0])

    def _check_address(self, address):
        if not is_public(address):
            raise UnreadableImage(
                f"{self.name_of_url}: leads to {address}, inside a private network; pass the file, or allow it with "
                "private_networks=True (--private-networks)"
            )

    def abandon(self):
        self.abandoned = True
        for connected in self.sockets:  # wakes the thread if it waits for data
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


def is_public(address):
    """Whether an IP address (`str`) belongs to the public internet, and not to this machine or its networks."""
    address = ipaddress.ip_address(address.partition("%")[0])
    if address.version == 6:
        translated = address in ipaddress.ip_network("64:ff9b::/96")  # by NAT64, to the IPv4 address at its end
        inner = address.ipv4_mapped or address.sixtofour or translated and ipaddress.ip_address(address.packed[-4:])
        address = inner or address
    return address.is_global and not address.is_multicast


def _reason(error, timeout_s):
    """What went wrong and what to do. Of the library's own words only those that cannot hold the address."""
    if isinstance(error, httpx.HTTPStatusError):
        code = error.response.status_code
        status = f"{code} {http.HTTPStatus(code).phrase if code in list(http.HTTPStatus) else ''}".strip()
        return f"the server answered {status}; check the address and the access to it"
    if isinstance(error, (httpx.TooManyRedirects, httpx.UnsupportedProtocol)):
        return f"redirects more than {MAX_REDIRECTS} times, or not to http(s); pass the address it ends at"
    if isinstance(error, (TimeoutError, httpx.TimeoutException)):
        return f"gave no whole picture within {timeout_s:g} s; try again, raise timeout_s or pass the file"
    if isinstance(error, (httpx.ProtocolError, httpx.ReadError)):
        return f"the answer is broken or ends early ({type(error).__name__}); try again, or pass the file"
    system = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    why = system[1] if system else type(error).__name__
    return f"cannot be fetched ({one_line(why)}); check the address and the network"
