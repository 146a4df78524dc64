"""Work that is dealt out to processes, and its rows in files that only grow, known again by their content."""
