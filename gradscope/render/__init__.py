"""Views of an Analysis."""
