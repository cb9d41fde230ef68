"""Ways to bring a cohort's processes up: on this machine without Ray, or by Ray Train anywhere."""
