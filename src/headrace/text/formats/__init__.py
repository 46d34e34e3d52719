"""What a model writes besides prose: its reasoning and its calls of tools, in the format of its own chat template."""
