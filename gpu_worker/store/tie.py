"""Run as a script: `tie.py PARENT_PID NICENESS PROGRAM ARGUMENT…`: becomes PROGRAM, dies with PARENT_PID.

A program of its own rather than a hook between fork and exec, because forking Python code out of a process
with gRPC threads can deadlock. Imports nothing of this package: it has to start in milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, niceness, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the line above: then nothing would ever kill this process.
    if os.getppid() != parent:
        sys.exit(1)
    os.nice(niceness)
    os.execvp(program[0], program)  # noqa: S606 - the launcher's own argv, no shell


if __name__ == "__main__":
    main()
