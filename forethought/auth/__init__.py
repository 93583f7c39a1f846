"""Authentication: tokens, the guard in front of every server, the bearer header that callers send.

Design: only two kinds of token. The run token grants everything; a client token may send requests but
never push weights. A server holds lists of accepted tokens rather than accounts, so there is no user
database, and a token is rotated by editing a file. The price is that two holders of the same token
cannot be told apart.

Nothing here imports grpc, pydantic or a web framework, so clients stay light; the gRPC side is
:mod:`forethought.rpc.guard`.
"""

from forethought.auth.bearer import Bearer
from forethought.auth.guard import Guard, Role
from forethought.auth.tokens import Tokens, tokens_of

__all__ = ["Bearer", "Guard", "Role", "Tokens", "tokens_of"]
