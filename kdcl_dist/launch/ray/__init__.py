"""Training on a Ray cluster with Ray Train.

Importing this package raises `UserError` where Ray is not installed.
"""

from importlib.util import find_spec

from kdcl_dist.errors import UserError

if find_spec("ray") is None:
    raise UserError(
        "launcher 'ray': Ray is not installed here: pip install 'ray[train,default]', or use launcher 'local'"
    )
