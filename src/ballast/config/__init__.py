"""The typed recipe: its sections, YAML files and overrides, and the training arguments it stands for."""
