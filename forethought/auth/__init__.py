"""Who may ask what: tokens, the guard that servers put before their doors, the bearer that callers send.

Design: two kinds of token and nothing else. The run's token grants everything; a client's token may
only ask, never push weights. A server holds lists of accepted tokens rather than accounts, so there is
no store to keep and a token is rotated by editing a file. The price is that nobody can tell two
holders of one token apart.

Nothing here imports grpc, pydantic or a web framework but :mod:`forethought.rpc.guard`, so that
clients stay light.
"""

from forethought.auth.bearer import Bearer
from forethought.auth.guard import Guard, Role
from forethought.auth.tokens import Tokens, tokens_of

__all__ = ["Bearer", "Guard", "Role", "Tokens", "tokens_of"]
