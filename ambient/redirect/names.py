"""What a name means in the cluster: the decisions of the node's name server.

Pure. The names themselves are ``ambient.model.names``; short names are the resolver's work, by its search
list.
"""

from __future__ import annotations

from ambient.model.mesh import Mesh
from ambient.model.names import addresses_of, is_of_cluster, of_family
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Answer, Query, Rcode


def answer(mesh: Mesh, query: Query) -> Answer | None:
    """Answer *query* from the mesh; None: not a name of the cluster, ask elsewhere."""
    if query.opcode != 0:
        return Answer(Rcode.NOTIMP)
    if not is_of_cluster(query.name):
        return None
    found = addresses_of(mesh, query.name)
    if found is None:
        return Answer(Rcode.NXDOMAIN)
    # Without an address of this family: NOERROR, empty. NXDOMAIN would end the search for the other family.
    if query.kind not in (TYPE_A, TYPE_AAAA):
        return Answer(Rcode.NOERROR)
    return Answer(Rcode.NOERROR, of_family(found, ipv6=query.kind == TYPE_AAAA))
