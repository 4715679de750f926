"""The base of all other rooms: errors, the model spec, recipes, the model folder and metrics."""
