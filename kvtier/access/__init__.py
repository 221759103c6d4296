"""Who calls over a network, and what they may: values and decisions, no input and output."""
