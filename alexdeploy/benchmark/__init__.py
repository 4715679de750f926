"""Backends, precisions and batch sizes measured against one another, in processes of their own."""
