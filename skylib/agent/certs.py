"""Certificates of a cluster's Ray: made on the head, a key and a certificate for each node, all from one authority.

Ray (RAY_USE_TLS) lets nobody in whose certificate is not from that authority, and dials nodes by address. The authority
lives as long as one call of `make`: its key is written nowhere, so nobody can make another certificate afterwards; each
bring-up makes all of them anew. A node's private key travels only where our SSH does.

Every file is 0600 in `<root>/.sky/tls` (0700): ca.crt, node.crt, node.key, for a newer Ray `token` as well, and last
`stamp`, the name of the bring-up that they belong to: who starts beside it waits for its own stamp.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import secrets
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence

from .config import AgentConfig, load_config

__all__ = ["AUTHORITY", "CERTIFICATE", "KEY", "STAMP", "TOKEN", "main", "make", "names_of", "wait_for_stamp", "write_files"]

AUTHORITY, CERTIFICATE, KEY, TOKEN, STAMP = "ca.crt", "node.crt", "node.key", "token", "stamp"

_YEARS = datetime.timedelta(days=3653)  # to both sides of now: nodes' clocks may be wrong by years
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*")
_POLL_S = 0.01


def names_of(ip: str, host: str) -> List[str]:
    """What a node's certificate is good for, addresses first; `host` is left out where it could not be looked up."""
    names = [ip, "127.0.0.1", "::1", "localhost"]
    if _is_address(host) or _HOST_NAME.fullmatch(host):
        names.append(host)
    return sorted(dict.fromkeys(names), key=lambda name: not _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def make(nodes: Sequence[Sequence[str]], *, cluster_id: str, now: Optional[float] = None) -> List[Dict[str, str]]:
    """For each node, given as the names of its certificate, its files by name, as PEM. now: unix time.

    EC P-256, SHA-256; good from ten years before `now` to ten years after. Needs the package `cryptography`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    moment = datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.timezone.utc)
    clear = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"skylib {cluster_id}"[:64])])
    authority: Any = ec.generate_private_key(ec.SECP256R1())

    def signed(subject: Any, key: Any, extensions: Sequence[Any]) -> str:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(moment - _YEARS).not_valid_after(moment + _YEARS)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        pem: bytes = builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return pem.decode()

    def usage(*, signs: bool) -> Any:
        ciphers = ("key_encipherment", "data_encipherment", "encipher_only", "decipher_only")
        rest = dict.fromkeys(("content_commitment", "key_agreement", *ciphers), False)
        return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **rest)

    ca = signed(issuer, authority, [(x509.BasicConstraints(ca=True, path_length=0), True), (usage(signs=True), True)])
    made = []
    for names in nodes:
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name) for name in names
        ]
        extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage(signs=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName(alternatives), False),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        certificate = signed(subject, key, extensions)
        private = key.private_bytes(serialization.Encoding.PEM, *clear).decode()
        made.append({AUTHORITY: ca, CERTIFICATE: certificate, KEY: private})
    return made


def write_files(folder: str, files: Mapping[str, str], stamp: str) -> None:
    """All of a node's files, each beside and renamed; the stamp last. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    for name, text in [*files.items(), (STAMP, stamp)]:
        beside = os.path.join(folder, f"{name}.new{os.getpid()}")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
        os.replace(beside, os.path.join(folder, name))


def wait_for_stamp(folder: str, stamp: str, deadline: float) -> bool:
    """Whether the files of that bring-up were there before the deadline (time.monotonic)."""
    while True:
        try:
            with open(os.path.join(folder, STAMP), encoding="utf-8") as file:
                if file.read() == stamp:
                    return True
        except OSError:
            pass  # not there yet
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def _files(config: AgentConfig, *, token: bool) -> List[Dict[str, str]]:
    made = make([names_of(node.ip, node.host) for node in config.nodes], cluster_id=config.cluster_id)
    if token:
        shared = secrets.token_hex(32)
        made = [{**files, TOKEN: shared} for files in made]
    return made


def main(config_path: str, *, stamp: str, token: bool = False, take: bool = False) -> int:
    """Writes this node's files and prints {rank: {file: text}} of the others as JSON; nothing unless all went well.

    token: one for all nodes, beside the certificates. take: this node's are not made but come as JSON on stdin.
    """
    config = load_config(config_path)
    if take:
        given: Dict[str, str] = json.load(sys.stdin)
        write_files(config.tls, given, stamp)
        return 0
    files = _files(config, token=token)
    write_files(config.tls, files[config.rank], stamp)
    sys.stdout.write(json.dumps({str(rank): each for rank, each in enumerate(files) if rank != config.rank}))
    return 0
