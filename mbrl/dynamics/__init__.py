"""Dynamics: one family of world models per file, all behind interfaces.Dynamics."""
