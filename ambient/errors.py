"""Every exception this project raises on purpose.

    AmbientError
    ├── ConfigError             a person or a file said something we cannot accept (exit 65)
    ├── ProtocolError           abstract: a rule of a wire format was broken
    │   ├── LocalProtocolError  by us: a bug in this code base
    │   └── RemoteProtocolError by the peer: close the connection, blame the peer
    ├── Denied                  a decision, not a failure: policy said no
    └── Unavailable             the right answer does not exist yet, or its owner is away (exit 69)

A class exists only where somebody who catches it would do something else. Errors of the
network stay what the standard library and trio made them.
"""

from __future__ import annotations


class AmbientError(Exception):
    """Base of everything below; catch it only at the top of a process."""


class ConfigError(AmbientError):
    """Input from a person or a file is not acceptable as it stands."""


class ProtocolError(AmbientError):
    """A wire rule was broken. Abstract: raise one of the two subclasses."""

    def __init__(self, message: str) -> None:
        if type(self) is ProtocolError:
            raise TypeError("ProtocolError is abstract: say whose fault it was")
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """We tried to send something the protocol forbids. Never the peer's fault."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids. Close, do not retry."""


class Denied(AmbientError):
    """Policy refused the connection.

    Args:
        reason: The sentence for the access record, naming the policy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unavailable(AmbientError):
    """What was asked for is not known yet, or whoever knows it cannot be reached."""
