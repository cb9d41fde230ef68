"""The coordinator: it checks and aligns logits, forms soft targets, records, and decides after failures."""
