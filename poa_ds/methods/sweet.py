"""POA of networks made from one template. After SWEET's published idea; numbers ours.

The idea (arXiv 2601.19694): a template that knows no size, and small scalers for each size. What is
new is in the backbone `tucker`; the step is POA's, and the width that it draws is the stochastic
scaling of the template's channels.
"""

from poa_ds.methods.poa import Poa


class Sweet(Poa):
    """The teacher is the moving average of the factors, not of the matrices that they make."""
