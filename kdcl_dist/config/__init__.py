"""The recipe: its fields, its file, and the order of rounds that follows from it."""
