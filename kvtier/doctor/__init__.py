"""What `kvtier doctor` looks at: the machine, the configuration, and what runs."""
