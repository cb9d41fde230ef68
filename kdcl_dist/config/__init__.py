"""The recipe: its fields, its file, its reference, and the schedule of rounds that follows from it."""
