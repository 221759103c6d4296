"""Recorded requests replayed through the policies that the agent runs."""
