"""HTTP by hand, for what no client library would send."""

import json
import socket
from typing import Any

PATIENCE = 60.0
"""Seconds until a test gives up on what comes at once on an idle machine. Only a failure ever takes so long."""


def connect(port: int, *, receive_buffer: int | None = None) -> socket.socket:
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    return sock


def post(path: str, body: Any, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return (head + headers + "\r\n").encode() + data


def get(path: str, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n".encode("latin-1")


def read_all(sock: socket.socket) -> bytes:
    """Until the server closes."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and everything else of one exchange after which the server closes the connection."""
    with connect(port) as sock:
        sock.sendall(request)
        answer = read_all(sock)
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer
