"""What all rooms share: domain, contracts, database, rpc, launcher, command line."""

import os

# Read when gRPC is loaded. Its fork handlers run in every child that Python makes to execute a program; they
# find closed files there, and may end it before the program begins. Engines are forked by a process that has
# not begun with gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
