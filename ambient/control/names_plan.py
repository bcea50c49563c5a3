"""Names of pods, stable from run to run. Pure.

A Deployment's pod is named as Kubernetes names it, ``<deployment>-<template hash>-<5 characters>``, but
where Kubernetes draws the end by chance it is a digest here: the same manifest gives the same names, so
that two runs of a benchmark speak of the same pods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Kubernetes' "safe" alphabet: no vowels and nothing that looks like another character.
ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
HASH_CHARACTERS = 9
SUFFIX_CHARACTERS = 5
# A pod's name is its hostname: an RFC 1123 label.
MAX_NAME_CHARACTERS = 63


def template_hash(template: Mapping[str, Any]) -> str:
    """The part of the name that changes when the template does."""
    return _digest(json.dumps(template, sort_keys=True, default=str), HASH_CHARACTERS)


def replica_names(namespace: str, owner: str, hashed: str, replicas: int) -> tuple[str, ...]:
    """The names of the pods of one Deployment, in order; scaling keeps those that stay.

    Args:
        owner: Name of the Deployment, for example ``"reviews-v1"``.
        hashed: Its ``template_hash``.
    """
    names: list[str] = []
    attempt = 0
    while len(names) < replicas:
        suffix = _digest(f"{namespace}/{owner}/{hashed}/{attempt}", SUFFIX_CHARACTERS)
        name = f"{_prefix(owner, hashed)}-{suffix}"
        attempt += 1
        if name not in names:
            names.append(name)
    return tuple(names)


def _prefix(owner: str, hashed: str) -> str:
    room = MAX_NAME_CHARACTERS - SUFFIX_CHARACTERS - HASH_CHARACTERS - 2
    return f"{owner[:room].rstrip('-.')}-{hashed}"


def _digest(text: str, characters: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    letters = []
    for _ in range(characters):
        number, index = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[index])
    return "".join(letters)
