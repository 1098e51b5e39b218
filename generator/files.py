"""Writing output files: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from generator.errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` into ``path``, creating its directory; a reader sees the old file or the new one, never a part.

    Raises OutputError naming the path and the system's reason; nothing half-written is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        # In the same directory, because rename() is atomic only within one file system.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes the file private; an ordinary new file has what the umask leaves of 0666.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write this file: {reason}", str(path)) from None
