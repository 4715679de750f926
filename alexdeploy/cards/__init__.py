"""A model that people can hand on: its card, its bill of materials, and the folder with both."""
