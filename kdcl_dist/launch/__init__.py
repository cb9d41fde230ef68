"""How a cohort's processes are started: on this machine without Ray, or on any cluster by Ray Train."""
