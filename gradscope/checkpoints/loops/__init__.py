"""The loops over time in what code computes, of whatever framework: their uses, turns and states."""
