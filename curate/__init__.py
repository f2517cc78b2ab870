"""What happens to samples: pure rules and model wrappers, no pipeline control."""
