"""The version of this package, here because modules below its interface write it down."""

__version__ = "0.1.0"
