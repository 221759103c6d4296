"""The agent's gRPC services."""
