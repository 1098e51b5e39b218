"""The two cascaded 8259A interrupt controllers of a PC (8259A data sheet: ICW and OCW as named there)."""

from __future__ import annotations

MASTER, SLAVE = 0x20, 0xA0   # command ports; the data port is the next one
CASCADE = 2                  # the master's input that the slave drives

ICW1_INIT, ICW1_ICW4, ICW1_LEVEL = 0x10, 0x01, 0x08
ICW4_AUTO_EOI = 0x02
OCW3 = 0x08
OCW3_READ_ISR, OCW3_READ = 0x01, 0x02
OCW2_EOI, OCW2_SPECIFIC = 0x20, 0x40


class _Chip:
    """One 8259A in fully nested mode (no rotation, no special mask mode: PC software does not use them)."""

    def __init__(self) -> None:
        self.irr = self.isr = self.lines = 0
        self.imr = 0xFF
        self.base = 0
        self.auto_eoi = self.level = self.reads_isr = False
        self.expected: list[str] = []  # ICWs still to come

    def command(self, value: int) -> None:
        if value & ICW1_INIT:
            self.irr = self.isr = self.imr = 0
            self.auto_eoi = self.reads_isr = False
            self.level = bool(value & ICW1_LEVEL)
            self.expected = ["ICW2", "ICW3"] + (["ICW4"] if value & ICW1_ICW4 else [])
        elif value & OCW3:
            if value & OCW3_READ:
                self.reads_isr = bool(value & OCW3_READ_ISR)
        elif value & OCW2_EOI:
            if value & OCW2_SPECIFIC:
                self.isr &= ~(1 << (value & 7))
            else:
                self.isr &= self.isr - 1  # highest priority in service = lowest bit

    def data(self, value: int) -> None:
        if not self.expected:
            self.imr = value
            return
        word = self.expected.pop(0)
        if word == "ICW2":
            self.base = value & 0xF8
        elif word == "ICW4":
            self.auto_eoi = bool(value & ICW4_AUTO_EOI)

    def set_line(self, line: int, high: bool) -> None:
        bit = 1 << line
        if high and (self.level or not self.lines & bit):
            self.irr |= bit
        if not high:
            self.irr &= ~bit
        self.lines = self.lines | bit if high else self.lines & ~bit

    def request(self) -> int | None:
        """The line that would interrupt now, by priority over what is in service."""
        ready = self.irr & ~self.imr
        for line in range(8):
            if self.isr >> line & 1:
                return None
            if ready >> line & 1:
                return line
        return None

    def acknowledge(self, line: int) -> None:
        if not (self.level and self.lines >> line & 1):
            self.irr &= ~(1 << line)
        if not self.auto_eoi:
            self.isr |= 1 << line


class Pic:
    """The pair at ports 0x20-0x21 and 0xA0-0xA1; attach it to both ranges. All lines are masked until ICW1."""

    def __init__(self) -> None:
        self._master, self._slave = _Chip(), _Chip()

    @property
    def masks(self) -> int:
        """Interrupt mask registers, the slave's in bits 15:8."""
        return self._master.imr | self._slave.imr << 8

    @property
    def vector_bases(self) -> tuple[int, int]:
        """Vector of IRQ 0 and of IRQ 8, as ICW2 set them."""
        return self._master.base, self._slave.base

    def set_irq(self, irq: int, high: bool) -> None:
        """Drive the line of ``irq`` (0..15)."""
        chip, line = (self._slave, irq - 8) if irq >= 8 else (self._master, irq)
        chip.set_line(line, high)
        self._cascade()

    def pending(self) -> bool:
        """Whether INTR is raised."""
        return self._master.request() is not None

    def acknowledge(self) -> int:
        """The CPU's INTA cycle: the vector. A request that has gone away gives the spurious IRQ 7 (or 15)."""
        line = self._master.request()
        if line is None:
            return self._master.base + 7
        self._master.acknowledge(line)
        if line != CASCADE:
            return self._master.base + line
        line = self._slave.request()
        if line is None:
            return self._slave.base + 7
        self._slave.acknowledge(line)
        self._cascade()
        return self._slave.base + line

    def port_read(self, port: int, size: int) -> int:  # noqa: ARG002
        chip = self._chip(port)
        if port & 1:
            return chip.imr
        return chip.isr if chip.reads_isr else chip.irr

    def port_write(self, port: int, size: int, value: int) -> None:  # noqa: ARG002
        chip = self._chip(port)
        if port & 1:
            chip.data(value)
        else:
            chip.command(value)
        self._cascade()

    def _chip(self, port: int) -> _Chip:
        return self._slave if port & 0x80 else self._master

    def _cascade(self) -> None:
        """The slave's INTR output is the master's line 2; re-raise it if more waits behind what was taken."""
        wants = self._slave.request() is not None
        self._master.set_line(CASCADE, False)
        if wants:
            self._master.set_line(CASCADE, True)
