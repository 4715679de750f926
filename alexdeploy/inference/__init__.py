"""What is done with engines: predict, and the rows that come out."""
