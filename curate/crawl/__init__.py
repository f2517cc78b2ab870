"""Crawls: which URLs are asked, how, and what came of it."""
