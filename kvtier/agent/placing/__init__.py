"""Which blocks make room for others, in any tier of slots."""
