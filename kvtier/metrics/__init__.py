"""The agent's numbers over HTTP, for Prometheus."""
