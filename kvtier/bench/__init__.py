"""Speed as a ratio to what the machine can do, measured side by side."""
