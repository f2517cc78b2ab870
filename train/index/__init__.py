"""Where each sample lies and what the networks are told of it: built from the tables or the tars, read row by row."""
