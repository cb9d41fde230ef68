"""The trackers of a run: TensorBoard, a CSV file, Weights & Biases, MLflow, and those of the user's own."""
