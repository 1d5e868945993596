"""gRPC between roles: .proto files, their committed generated modules, and the mapping of errors."""
