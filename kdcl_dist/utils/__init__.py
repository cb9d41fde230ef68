"""Helpers that several packages share: random numbers, import strings, intervals, processes, networks."""
