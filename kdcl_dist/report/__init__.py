"""The HTML report: one page on a run, or on a comparison of several."""
