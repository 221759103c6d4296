"""Values and algorithms: no I/O, no asyncio, no logging."""
