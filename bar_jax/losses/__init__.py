"""What trains a tokenizer."""
