"""Experiments of several arms and seeds: train every run, and summarise the test results of each arm."""
