"""What every room stands on: errors, the model spec, recipes, artifacts and metrics."""
