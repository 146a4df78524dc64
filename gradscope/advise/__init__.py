"""What to do about it: settings that reach a target, each verified, and weights with them set."""
