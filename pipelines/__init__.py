"""One short script for each step of the curation, and run.py for all of them."""
