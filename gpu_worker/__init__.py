"""What runs on a GPU host: supervisor, checkpoint store, engine processes.

Knows no database and no workflow: a host's data plane outlives any outage of the control plane.
"""

import os

# As in `firstlight`: before any module here loads gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
