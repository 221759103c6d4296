"""DISK, CLUSTER and the GPU tier at work."""
