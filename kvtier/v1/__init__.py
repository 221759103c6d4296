"""Generated from `proto/kvtier/v1`; see `make proto`."""
