"""What workers ask for: lookups, loads, stores, events."""
