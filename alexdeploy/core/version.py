"""The version of the package, which is recorded in the files that it writes."""

__version__ = "0.2.0"
