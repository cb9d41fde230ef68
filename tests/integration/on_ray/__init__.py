"""Runs on Ray that share one cluster, which takes longer to start than most of them."""
