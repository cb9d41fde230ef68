"""Data sets as people have them, opened for training: tables, folders of Hugging Face's, torch Datasets."""
