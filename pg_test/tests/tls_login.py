"""Logs in as alice over TCP with libpq and sslmode=prefer, and says what came of it.

Usage: tls_login.py SERVER-PORT [PEM-FILE]

With a certificate it puts a TLS endpoint before a server that has no TLS of its own: whether libpq
connects again depends on what libpq sees.
"""

import socket
import ssl
import struct
import sys
import threading

import psycopg2

SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def copy(source, target):
    try:
        while data := source.recv(8192):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(listener, context, server_port):
    while True:
        client, _ = listener.accept()
        if client.recv(8, socket.MSG_PEEK) == SSL_REQUEST:
            client.recv(8)
            client.sendall(b"S")
            client = context.wrap_socket(client, server_side=True)
        server = socket.create_connection(("127.0.0.1", server_port))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def endpoint(server_port, pem_file):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem_file)
    listener = socket.create_server(("127.0.0.1", 0))
    arguments = (listener, context, server_port)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    return listener.getsockname()[1]


port = int(sys.argv[1])
if len(sys.argv) > 2:
    port = endpoint(port, sys.argv[2])
try:
    session = psycopg2.connect(
        host="127.0.0.1",
        port=port,
        user="alice",
        dbname="postgres",
        sslmode="prefer",
        gssencmode="disable",
    )
    print("admitted over TLS" if session.info.ssl_in_use else "admitted without TLS")
    session.close()
except psycopg2.OperationalError as error:
    print(str(error).strip())
