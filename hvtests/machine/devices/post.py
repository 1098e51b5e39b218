"""Port 0x80: the diagnostic (POST) code; old software also writes it to wait about a microsecond."""

from __future__ import annotations


class PostPort:
    """Keeps the last byte written and counts the writes."""

    def __init__(self) -> None:
        self.code = 0
        self.writes = 0

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        return self.code

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        self.code = value
        self.writes += 1
