"""The first process of a step or a container: makes its own file system, gives up its rights, and becomes the command.

Started by `unshare` as root with new namespaces; all it needs is in the JSON of its one argument.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_REFUSED = (101, 310, 311, 438)
"""ptrace, process_vm_readv, process_vm_writev and pidfd_getfd on x86-64: what engines' default filters, and so
Kubernetes' RuntimeDefault, refuse without CAP_SYS_PTRACE, of what a server like this could want."""
_SIOCSIFADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _UP = 0x8916, 0x8913, 0x8914, 1


def main(spec):
    root = Path(spec["root"])
    layers = f"lowerdir=/,upperdir={spec['layer']},workdir={spec['work']}"
    mount("overlay", root, kind="overlay", options=f"{layers},index=off")
    for path in spec["hidden"]:
        mount("tmpfs", root / path[1:], kind="tmpfs", options="mode=755")
    for source, path in spec["shown"]:
        place = root / path[1:]
        place.mkdir(parents=True, exist_ok=True)
        mount(source, place, options="bind")
    for _, path, _ in spec["volumes"]:
        (root / path[1:]).mkdir(parents=True, exist_ok=True)
    if not spec["writable"]:
        for path in ("/", *spec["hidden"], *(path for _, path in spec["shown"])):
            mount("none", root / path[1:], options="remount,bind,ro")
    for source, path, read_only in spec["volumes"]:
        mount(source, root / path[1:], options="bind")
        if read_only:
            mount("none", root / path[1:], options="remount,bind,ro")
    make_devices(root / "dev", not spec["writable"])
    mount("proc", root / "proc", kind="proc")
    if spec["address"]:
        bring_up(spec["address"])
    os.chroot(root)
    os.chdir(spec["directory"])
    if spec["user"] is not None:
        os.setgroups([])
        os.setgid(spec["user"])
        os.setuid(spec["user"])
    if spec["confined"]:
        confine()
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


def mount(source, target, *, kind=None, options="defaults"):
    types = ["-t", kind] if kind else []
    subprocess.run(["mount", *types, "-o", options, str(source), str(target)], check=True)


def make_devices(directory, fresh):
    if not fresh:
        mount("/dev", directory, options="bind")
        return
    mount("tmpfs", directory, kind="tmpfs", options="mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        (directory / name).touch()
        mount(f"/dev/{name}", directory / name, options="bind")
    (directory / "shm").mkdir()
    mount("tmpfs", directory / "shm", kind="tmpfs", options="mode=1777,size=64m")


def bring_up(address):
    """Loopback, and one more address, as a container's interface has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for name, own in ((b"lo", "127.0.0.1"), (b"lo:1", address)):
            family = struct.pack("<HH4s8x", socket.AF_INET, 0, socket.inet_aton(own))
            fcntl.ioctl(control, _SIOCSIFADDR, struct.pack("16s16s", name, family))
            flags = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sh14x", name, 0))[16:18]
            up = struct.unpack("h", flags)[0] | _UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", name, up))


def confine():
    """`no-new-privileges`, and a filter of system calls."""
    load_number = (0x20, 0, 0, 0)
    checks = [(0x15, len(_REFUSED) - index, 0, number) for index, number in enumerate(_REFUSED)]
    program = [load_number, *checks, (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    given_up = _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if given_up or _LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot be confined")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
