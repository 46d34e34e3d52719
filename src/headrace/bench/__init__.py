"""A load generator for any OpenAI-compatible server, cheap enough to share the machine with what it measures."""
