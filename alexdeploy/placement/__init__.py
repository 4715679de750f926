"""Which devices there are, what runs on each of them, and how work is spread over all."""
