"""What was trained, in the files that other programs read: written, loaded back and compared."""
