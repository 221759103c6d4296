"""One node's agent: sessions, leases and what moves blocks."""
