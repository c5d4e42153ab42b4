"""Deliberately wrong passes, captures, observers, codecs, plans and kernels: one at least a law."""
