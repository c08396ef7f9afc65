"""Train plain and residual networks across depths, and see the difference."""

__version__ = "0.1.0"
