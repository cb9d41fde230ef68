"""Exports: trained students as files that do not need this package, and predictions from such files."""
