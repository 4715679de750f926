"""Finding devices, planning what runs on each, and distributing work over them."""
