"""Where the bytes of blocks live."""
