"""One file for each way to make a model faster; each says what it needs and guarantees."""
