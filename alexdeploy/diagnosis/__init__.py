"""The contents of a model folder, a graph or an installation, and their problems."""
