"""`kdcl plan`: what a step of a cohort will take, and which replicas shorten it; see docs/planning.md."""
