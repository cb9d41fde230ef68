"""One long run that meets thousands of faults, and must end as the run that met none."""
