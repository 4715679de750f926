"""Run alexdeploy where sending anything to an internet address ends the process: python offline.py WORDS."""

from __future__ import annotations

import ctypes
import faulthandler
import platform
import runpy
import signal
import socket
import struct
import sys

CALLS = {"x86_64": (42, 44), "aarch64": (203, 206)}.get(platform.machine()) if sys.platform == "linux" else None
"""The numbers of the system calls connect and sendto, where they are known."""

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_TRAP, _ALLOW = 0x00030000, 0x7FFF0000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARGUMENT_2, _ARGUMENT_5 = 0, 32, 56
_SOCKADDR_IN, _SOCKADDR_IN6 = 16, 28


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_network(connect: int, sendto: int) -> None:
    """Have SIGSYS end this process, or a later child, when it calls on an IPv4 or IPv6 address, as a DNS query does.

    A filter cannot read the address: those two are known by their length. Opening a socket is allowed, since libuuid
    finds the MAC address through one.
    """
    instructions = (
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_EQUAL, 2, 0, connect),
        (_JUMP_IF_EQUAL, 3, 0, sendto),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, _ARGUMENT_2),
        (_JUMP_IF_EQUAL, 3, 2, _SOCKADDR_IN),
        (_LOAD, 0, 0, _ARGUMENT_5),
        (_JUMP_IF_EQUAL, 1, 0, _SOCKADDR_IN),
        (_JUMP_IF_EQUAL, 0, 1, _SOCKADDR_IN6),
        (_RETURN, 0, 0, _TRAP),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, values in (
        (_PR_SET_NO_NEW_PRIVS, (1, 0, 0, 0)),
        (_PR_SET_SECCOMP, (_SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)),
    ):
        if libc.prctl(option, *values):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


def _try(kind: str) -> None:
    """What must end the process, each in its own way."""
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect_ex("/no/such/socket")
    print("filtered", flush=True)
    if kind == "IPv4":
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 53))
    elif kind == "IPv6":
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).connect(("::1", 53))
    else:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"?", ("127.0.0.1", 53))


if __name__ == "__main__":
    assert CALLS is not None
    forbid_network(*CALLS)
    # Say which import or call it was.
    faulthandler.register(signal.SIGSYS, all_threads=False, chain=True)
    if sys.argv[1] == "--try":
        _try(sys.argv[2])
    else:
        runpy.run_module("alexdeploy", run_name="__main__", alter_sys=True)
