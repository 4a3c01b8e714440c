"""Runs a command that ends when its parent does, optionally as another user.

`die_with_parent.py SIGNAL PARENT USER COMMAND...` replaces itself by COMMAND, so the process
keeps its id. On Linux the kernel then sends SIGNAL if the parent dies, however it
dies; elsewhere nothing does. A program of its own rather than a `preexec_fn`, because
the parents have threads and Python code between fork and exec is not safe there.

The kernel watches the parent's thread: start commands from a thread that lives as long
as they shall (prctl(2), PR_SET_PDEATHSIG).
"""

import ctypes
import os
import pwd
import sys

PR_SET_PDEATHSIG = 1


def main(signal_number: int, parent: int, user: str, command: list[str]) -> None:
    if user:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.environ["HOME"] = entry.pw_dir
    if sys.platform == "linux":
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            sys.exit("the parent is gone")
    os.execv(command[0], command)  # noqa: S606  there is no shell to speak of


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
