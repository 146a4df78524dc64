"""Problems of settings that are given by keywords, as ``gradscope.analyze`` takes them."""

from gradscope.problem import layers, problem
from gradscope.problem.inputs import given_sequences
from gradscope.settings import Settings


def make_problem(layer=None, embedding=None, **options):
    """The problem of a fresh cell or of one layer; embedding : the matrix for inputs of token ids."""
    if embedding is not None:
        time_major = options.pop("time_major", False)
        options["inputs"] = given_sequences(options["inputs"], time_major=time_major, embedding=embedding)
    return problem.make_problem(Settings(**options), layer)


def make_problems(model, devices, **options):
    return layers.make_problems(Settings(**options), model, devices)
