"""What the tests are held against: none of it shares a formula with the package.

``reference``  singular values in exact arithmetic (python-flint, gmpy2)
``chains``     Jacobians to try the numerics on, in NumPy
``equations``  the cells again from their papers, in NumPy, differentiated by complex steps
``layouts``    weights as PyTorch, Keras and Flax name and arrange them, and their files written by hand
``hostile``    files that lie, harm or never end
``models``     one layer of a file, its outputs and its spectrum
``program``    gradscope as a process: of the README, of an example, of a cluster
"""
