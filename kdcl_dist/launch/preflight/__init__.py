"""The checks before a run: free capacity, bank memory, data, versions and storage."""
