"""Writing data sets from published ones: one module for each source, and shared modules."""
