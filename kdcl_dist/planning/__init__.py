"""`kdcl plan`: predicts the step of a cohort, and proposes replicas that shorten it; see docs/planning.md."""
