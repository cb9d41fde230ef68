"""Networks behind an HTTP endpoint: what passes between `kdcl serve` and those that ask it."""
