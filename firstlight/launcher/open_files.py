"""As many open files as the system lets this process have: a connection is one, and a crowd is thousands.

The usual soft limit is 1,024, chosen for programs that use select(). Beyond it connections would not be
refused with a status and a time to come again, but hang.
"""

from __future__ import annotations

import resource


def allow_open_files() -> int:
    """Raise the soft limit to the hard one; what it is afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
