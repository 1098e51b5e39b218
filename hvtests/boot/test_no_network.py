"""An emulator that runs for us is reachable from nowhere: Bochs' screen is a VNC server, without a password."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from hvtests.boot.images import SPIN, disk
from hvtests.runners.bochs import BochsRunner

VNC = range(5900, 5910)
LISTEN = "0A"


def _listening() -> set[int]:
    ports = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def _namespaces_permitted() -> bool:
    return any(subprocess.run(["unshare", *flags, "true"], check=False, capture_output=True, timeout=10).returncode == 0
               for flags in (["-n"], ["-U", "-n"]))


@pytest.mark.bochs
def test_bochs_listens_on_no_port_that_others_reach(tmp_path: Path) -> None:
    image = tmp_path / "spin.img"
    image.write_bytes(disk(b"spinning", SPIN))
    before = _listening()
    run = threading.Thread(target=lambda: BochsRunner().run(image, timeout=2.5))
    run.start()
    seen: set[int] = set()
    while run.is_alive():
        seen |= _listening() - before
        time.sleep(0.05)
    if _namespaces_permitted():
        assert not seen & set(VNC)
    else:
        assert seen <= set(VNC)   # where the system forbids namespaces, README tells of it
