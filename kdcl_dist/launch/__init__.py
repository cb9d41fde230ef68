"""Ways to bring a cast's processes up: on this machine without Ray, or by Ray Train anywhere."""
