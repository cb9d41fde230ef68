"""Experiments of several arms and seeds: run them, and say what each arm is worth."""
