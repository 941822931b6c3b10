"""From a model and a file to a recipe that compares what is worth comparing: `ballast init` and `ballast try`."""
