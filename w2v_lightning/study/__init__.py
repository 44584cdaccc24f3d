"""Studies: a matrix of training runs, carried out on this machine or elsewhere, collected and reported."""
