"""Numbers about images: how well they are reconstructed, how real samples look."""
