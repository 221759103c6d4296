"""Blocks on Redis or Valkey, shared by the nodes."""
