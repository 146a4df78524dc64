"""linearize."""
