"""`study report`: what was measured, what the model makes of it, and what the original study claimed."""
