"""`study report`: measurements of a study, the model fitted to them, and a comparison with the original study."""
