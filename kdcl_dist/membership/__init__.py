"""Who takes part in a run and who has failed, through a store that the coordinator hosts."""
