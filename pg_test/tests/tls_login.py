"""Logs in as alice with libpq, sslmode=prefer, through a TLS endpoint in front of the server, and says what came of it and
how many connections libpq made. Not every server of the tests has TLS of its own; whether libpq connects again depends
on its own side only.

Usage: tls_login.py PEM-FILE SERVER-PORT
"""

import socket
import ssl
import struct
import sys
import threading

import psycopg2

SSL_REQUEST = struct.pack("!ii", 8, 80877103)

pem_file, server_port = sys.argv[1], int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem_file)
listener = socket.create_server(("127.0.0.1", 0))
connections = 0


def copy(source, target):
    try:
        while data := source.recv(8192):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve():
    global connections
    while True:
        client, _ = listener.accept()
        connections += 1
        if client.recv(8, socket.MSG_PEEK) == SSL_REQUEST:
            client.recv(8)
            client.sendall(b"S")
            client = context.wrap_socket(client, server_side=True)
        server = socket.create_connection(("127.0.0.1", server_port))
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


threading.Thread(target=serve, daemon=True).start()
try:
    session = psycopg2.connect(
        host="127.0.0.1",
        port=listener.getsockname()[1],
        user="alice",
        dbname="postgres",
        sslmode="prefer",
        gssencmode="disable",
    )
    print("admitted over TLS" if session.info.ssl_in_use else "admitted without TLS")
    session.close()
except psycopg2.OperationalError as error:
    print(str(error).strip())
print(connections, "connection" if connections == 1 else "connections")
