"""What training costs: prices as data with their dates, cost as a pure function."""
