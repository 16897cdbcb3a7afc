"""An S3 server behind TLS, with an authority of its own. Certificates are made on the spot."""

import datetime as dt
import ipaddress
import select
import socket
import ssl
import threading
from urllib.parse import urlsplit

import pytest


def certificate(folder, *, name="127.0.0.1", days=1):
    """Make an authority and a certificate for an address. Return the authority's file and the server's file."""
    pytest.importorskip("cryptography", reason="comes with moto")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = dt.datetime.now(dt.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("authority", "server")]

    def signed(number):
        builder = x509.CertificateBuilder().subject_name(names[number]).issuer_name(names[0])
        builder = builder.public_key(keys[number].public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=9))
        builder = builder.not_valid_after(now + dt.timedelta(days=days if number else 9))
        builder = builder.add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
        key_id = x509.SubjectKeyIdentifier.from_public_key(keys[number].public_key())
        builder = builder.add_extension(key_id, critical=False)
        if number:
            address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
            builder = builder.add_extension(address, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key())
        builder = builder.add_extension(authority, critical=False)
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "authority.pem").write_bytes(signed(0))
    (folder / "server.pem").write_bytes(private + signed(1))
    return str(folder / "authority.pem"), str(folder / "server.pem")


class Tls:
    """A port that speaks TLS and passes the bytes on to a plain server. A context manager; `url` is its URL."""

    def __init__(self, upstream: str, file: str) -> None:
        self._upstream = urlsplit(upstream)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file)
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listening.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listening.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, plain):
        try:
            with (
                self._context.wrap_socket(plain, server_side=True) as client,
                socket.create_connection((self._upstream.hostname, self._upstream.port)) as server,
            ):
                while True:
                    ready, _, _ = select.select([client, server], [], [], 0 if client.pending() else 60)
                    for source, sink in ((client, server), (server, client)):
                        if source in ready or (source is client and client.pending()):
                            if not (data := source.recv(65536)):
                                return
                            sink.sendall(data)
        except OSError:  # the client refuses the certificate, or is gone
            pass
