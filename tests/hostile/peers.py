"""Peers that misbehave on :15008: raw sockets, TLS by hand, HTTP/2 frames by hand."""

from __future__ import annotations

import os
import ssl

from ambient.engine.tls import Svid


def load_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """Give *context* a chain with its key, past the disk."""
    fd = os.memfd_create("hostile")
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def client_context(svid: Svid | None, alpn: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
    """A client that believes everybody and shows *svid*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if svid is not None:
        load_pem(context, pem_of(svid))
    return context


def pem_of(svid: Svid) -> bytes:
    """Chain and key."""
    return b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in svid.chain) + svid.key
