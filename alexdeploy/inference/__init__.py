"""What is done with models and engines: predict, evaluate, verify, bench; and what inspect and doctor find out."""
