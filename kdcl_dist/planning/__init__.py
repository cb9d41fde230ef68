"""`kdcl plan`: what a step of a cast will take, and which replicas shorten it; see docs/planning.md."""
