"""What operators see of an agent, and do to it."""
