"""Small helpers of every package: random numbers, import strings, intervals, processes, addresses."""
