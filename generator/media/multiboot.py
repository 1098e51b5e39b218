"""A multiboot1 kernel file: an ELF32 executable for 80386, as GRUB and ``qemu -kernel`` load it.

Source: Multiboot Specification 0.6.96, 3.1; ELF: System V ABI, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from generator.errors import LayoutError
from generator.media.segments import Segment

_EHDR = struct.Struct("<16sHHIIIIIHHHHHH")
_PHDR = struct.Struct("<IIIIIIII")
_IDENT = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")  # ELFCLASS32, ELFDATA2LSB, EV_CURRENT
_ET_EXEC, _EM_386, _EV_CURRENT, _PT_LOAD, _RWX = 2, 3, 1, 1, 7
_ALIGN = 0x1000
HEADER_WITHIN = 8192  # bytes of the file in which loaders look for the multiboot header


def make_elf(segments: Sequence[Segment], entry: int) -> bytes:
    """The file: one PT_LOAD for each segment, in the order of addresses, loaded where it runs.

    The multiboot header must lie within the first 4 KiB of the lowest segment. Memory that a segment takes beyond
    its data is declared (p_memsz), so that a loader puts nothing there. Raises LayoutError for what 32 bits cannot
    hold, for overlap, and for more segments than the first page has room for.
    """
    ordered = sorted((segment for segment in segments if segment.end > segment.address), key=lambda s: s.address)
    for segment, following in zip(ordered, [*ordered[1:], None], strict=True):
        limit = following.address if following is not None else 1 << 32
        if segment.end > limit:
            raise LayoutError(f"the segment {segment.address:#x} to {segment.end:#x} reaches beyond {limit:#x}")
    table = _EHDR.size + _PHDR.size * len(ordered)
    if table > _ALIGN:
        raise LayoutError(f"{len(ordered)} segments are too many for one multiboot file")
    headers, body = [], bytearray(table)
    for segment in ordered:
        # File offset and address agree modulo the page size, as the ELF specification asks.
        offset = -(-len(body) // _ALIGN) * _ALIGN + segment.address % _ALIGN if segment.data else len(body)
        if segment.data:
            body += bytes(offset - len(body)) + segment.data
        headers.append(
            _PHDR.pack(_PT_LOAD, offset, segment.address, segment.address, len(segment.data),
                       segment.end - segment.address, _RWX, _ALIGN if segment.data else 1)
        )  # fmt: skip
    body[:table] = _EHDR.pack(
        _IDENT, _ET_EXEC, _EM_386, _EV_CURRENT, entry, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, len(headers), 0, 0, 0
    ) + b"".join(headers)
    return bytes(body)
