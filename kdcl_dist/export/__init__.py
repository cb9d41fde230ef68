"""Trained students as files that need this package no more, and predictions from such files."""
