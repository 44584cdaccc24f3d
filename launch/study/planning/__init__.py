"""What to train on: every candidate's time and money, from the model, and the best of them."""
