"""Training and looking at runs from Python and notebooks: `train`, `Student`, `Run`."""
