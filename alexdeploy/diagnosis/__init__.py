"""What a model folder, a graph or an installation holds, and what is wrong with it."""
