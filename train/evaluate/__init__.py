"""What the network draws while it learns, and how near that is to real pictures."""
