"""A 16550A serial port (PC16550D data sheet; its register numbers below), with a transmitter that takes no time.

Words are as long as LCR says, five bits after reset: whoever prints without programming LCR sees garbage here as on
Bochs and on a real port.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# Register offsets from the base port.
DATA = 0           # RBR on read, THR on write; divisor latch low byte while DLAB is set
IER = 1            # divisor latch high byte while DLAB is set
IIR_FCR = 2        # IIR on read, FCR on write
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

LCR_DLAB = 0x80
LCR_WORD_LENGTH = 0x03  # 5 bits and that many more
MCR_LOOPBACK = 0x10
LSR_DATA_READY = 0x01
LSR_THR_EMPTY = 0x20
LSR_TRANSMITTER_EMPTY = 0x40
IIR_NONE = 0x01
IIR_THR_EMPTY = 0x02
IIR_RECEIVED = 0x04
IIR_FIFOS = 0xC0
FCR_ENABLE = 0x01
FCR_CLEAR_RECEIVER = 0x02
MSR_CARRIER_AND_READY = 0xB0  # CTS, DSR, DCD: somebody listens at the other end


class Uart:
    """One serial port at eight I/O ports. Each byte sent goes to ``sink`` at once; :meth:`feed` makes it receive."""

    def __init__(self, sink: Callable[[bytes], None], base: int = 0x3F8) -> None:
        self.base = base
        self._sink = sink
        self._received: deque[int] = deque()
        self.divisor = 1
        self.ier = self.lcr = self.mcr = self.scratch = 0
        self.fifos = False
        self._thr_pending = False  # THR-empty interrupt not yet read out of IIR

    @property
    def baud(self) -> int:
        """The line's speed by the divisor latch; 115200 for divisor 1. A divisor of 0 counts as 65536."""
        return 115200 // (self.divisor or 65536)

    def feed(self, data: bytes) -> None:
        """Let ``data`` arrive on the line."""
        self._received.extend(data)

    @property
    def interrupting(self) -> bool:
        """Whether the port asks for an interrupt (MCR.OUT2 gates the line to the PIC on a PC)."""
        return self._iir() & IIR_NONE == 0 and bool(self.mcr & 0x08)

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        register = port - self.base
        if register == DATA:
            if self.lcr & LCR_DLAB:
                return self.divisor & 0xFF
            return self._received.popleft() if self._received else 0
        if register == IER:
            return self.divisor >> 8 if self.lcr & LCR_DLAB else self.ier
        if register == IIR_FCR:
            value = self._iir()
            if value == IIR_THR_EMPTY:
                self._thr_pending = False
            return value | (IIR_FIFOS if self.fifos else 0)
        if register == LSR:
            return LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY | (LSR_DATA_READY if self._received else 0)
        if register == MSR:
            return self._modem_status()
        return {LCR: self.lcr, MCR: self.mcr, SCR: self.scratch}[register]

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        register = port - self.base
        if register == DATA:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0xFF00 | value
            else:
                self._send(value)
        elif register == IER:
            if self.lcr & LCR_DLAB:
                self.divisor = self.divisor & 0x00FF | value << 8
            else:
                # Enabling it with the holding register already empty raises the interrupt (data sheet 8.7).
                self._thr_pending |= bool(value & ~self.ier & 0x02)
                self.ier = value & 0x0F
        elif register == IIR_FCR:
            self.fifos = bool(value & FCR_ENABLE)
            if value & FCR_CLEAR_RECEIVER:
                self._received.clear()
        elif register == LCR:
            self.lcr = value
        elif register == MCR:
            self.mcr = value & 0x1F
        elif register == SCR:
            self.scratch = value

    def _send(self, value: int) -> None:
        self._thr_pending = True
        value &= (1 << 5 + (self.lcr & LCR_WORD_LENGTH)) - 1
        if self.mcr & MCR_LOOPBACK:
            self._received.append(value)
        else:
            self._sink(bytes((value,)))

    def _iir(self) -> int:
        if self.ier & 0x01 and self._received:
            return IIR_RECEIVED
        if self.ier & 0x02 and self._thr_pending:
            return IIR_THR_EMPTY
        return IIR_NONE

    def _modem_status(self) -> int:
        if not self.mcr & MCR_LOOPBACK:
            return MSR_CARRIER_AND_READY
        # In loopback the outputs RTS, DTR, OUT1, OUT2 are wired to the inputs CTS, DSR, RI, DCD.
        return sum(1 << to for frm, to in ((1, 4), (0, 5), (2, 6), (3, 7)) if self.mcr >> frm & 1)
