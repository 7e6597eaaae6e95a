"""One verb, one command, one function, read top to bottom. Only stages join the three wings."""
