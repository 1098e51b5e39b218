"""The child process in which Keystone runs: started by assemble.py as a script, never imported by it.

Keystone 0.9.2 can hang and can kill its process, so it gets one of its own. Start-up time counts: only ctypes and
marshal are imported, and the library is called directly. argv[1] is the path of libkeystone; standard input holds
marshalled lists of (bits, base, text); for each row, standard output receives a length (32 bits) and a marshalled
tuple (error text or "", code bytes) at once, so whoever reads knows at which row it died.
"""

from __future__ import annotations

import ctypes
import marshal
import sys

KS_ARCH_X86 = 4
KS_MODE = {16: 1 << 1, 32: 1 << 2, 64: 1 << 3}


def open_library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    library.ks_strerror.restype = ctypes.c_char_p
    library.ks_asm.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64,
        ctypes.POINTER(ctypes.POINTER(ctypes.c_ubyte)),
        ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t),
    ]  # fmt: skip
    library.ks_errno.argtypes = [ctypes.c_void_p]
    library.ks_close.argtypes = [ctypes.c_void_p]
    library.ks_free.argtypes = [ctypes.POINTER(ctypes.c_ubyte)]
    return library


def assemble(library: ctypes.CDLL, bits: int, base: int, text: str) -> tuple[str, bytes]:
    """(error text or "", code). A new engine for every program: symbols of one must not reach the next."""
    engine = ctypes.c_void_p()
    error = library.ks_open(KS_ARCH_X86, KS_MODE[bits], ctypes.byref(engine))
    if error:
        return library.ks_strerror(error).decode(), b""
    encoding = ctypes.POINTER(ctypes.c_ubyte)()
    size, statements = ctypes.c_size_t(), ctypes.c_size_t()
    status = library.ks_asm(
        engine, text.encode(), base, ctypes.byref(encoding), ctypes.byref(size), ctypes.byref(statements)
    )
    if status:
        problem = library.ks_strerror(library.ks_errno(engine)).decode(), b""
    else:
        problem = "", ctypes.string_at(encoding, size.value) if encoding else b""
        library.ks_free(encoding)
    library.ks_close(engine)
    return problem


def main() -> None:
    library = open_library(sys.argv[1])
    output = sys.stdout.buffer
    while True:
        try:
            work = marshal.load(sys.stdin.buffer)
        except EOFError:
            return
        for bits, base, text in work:
            answer = marshal.dumps(assemble(library, bits, base, text))
            output.write(len(answer).to_bytes(4, "little") + answer)
            output.flush()


if __name__ == "__main__":
    main()
