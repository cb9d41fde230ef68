"""Writing data sets from what others publish: one module a source, and what they share."""
