"""Naive reference implementations of the losses: Python loops over explicit pairs, in torch scalars.

They share no code with nearfar. Each module has one function, ``oracle(inputs, options, parameters)``: the inputs are
those of ``tests.losses.inputs``, ``options`` are the constructor's, ``parameters`` the loss's own tensors by name. It
returns a scalar, or one value per row with None for a row that does not count in the mean.
"""
