"""Runs a command that gets a signal when its parent dies, optionally as another user.

`die_with_parent.py SIGNAL PARENT USER COMMAND...` replaces itself by COMMAND, so the process
keeps its id. On Linux, the kernel sends SIGNAL when the parent dies for any reason. On other
systems nothing is sent. This is a separate program instead of a `preexec_fn`, because running
Python code between fork and exec is not safe in a process with threads.

The signal is sent when the parent's thread ends that started the command, so that thread must
live as long as the command (prctl(2), PR_SET_PDEATHSIG).
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
        # After the change of user, which clears the setting.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            sys.exit("the parent has died")
    os.execv(command[0], command)  # noqa: S606  no shell is involved


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
