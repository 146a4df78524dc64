"""What is asked, checked. Public: ``problem.Problem``, ``layers.Problems``, ``layers.make_problems``."""
