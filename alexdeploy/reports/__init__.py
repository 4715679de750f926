"""Pages for people: their form, their figures, and the photographs in them."""
