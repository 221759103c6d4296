"""Who is connected, with which namespaces, and what they hold."""
