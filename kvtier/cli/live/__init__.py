"""The full-screen view of `kvtier top`."""
