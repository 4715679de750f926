"""Where in a photograph the evidence for a class is: by covering parts of it, and by gradients."""
