#!/usr/bin/env python3
"""A client of the 0-RTT TCP Convert Protocol, written from RFC 8803 alone.

Sends one message, and payload right after it, and prints as JSON what comes back:
"tlvs", a list of {"type", "value" (hexadecimal)}, and of the bytes after the message "bytes", how many
they are, and "sum", what they add up to.
"""

import argparse
import ipaddress
import json
import socket
import struct

VERSION, MAGIC = 1, 0x2263
INFO, CONNECT, COOKIE = 1, 10, 22
LIMIT = 10  # seconds


def tlv(kind, value):
    """Section 4.2.1: type, length in 32-bit words, value padded with zeros."""
    padded = value + bytes(-(2 + len(value)) % 4)
    return bytes([kind, (2 + len(padded)) // 4]) + padded


def connect(target, options):
    """Section 4.2.5: port, address (IPv4 mapped to IPv6), TCP options."""
    host, _, port = target.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    if address.version == 4:
        address = ipaddress.ip_address("::ffff:" + host)
    return tlv(CONNECT, struct.pack("!H", int(port)) + address.packed + options)


def message(tlvs, version):
    """Section 4.1: version, total length in 32-bit words, magic number."""
    body = b"".join(tlvs)
    return struct.pack("!BBH", version, (4 + len(body)) // 4, MAGIC) + body


def read_exactly(stream, length):
    data = stream.read(length)
    if len(data) != length:
        raise SystemExit("the connection ended in the middle of a message: %r" % data)
    return data


def read_message(stream):
    version, words, magic = struct.unpack("!BBH", read_exactly(stream, 4))
    if (version, magic) != (VERSION, MAGIC):
        raise SystemExit("no Convert message: version %d, magic %#x" % (version, magic))
    body, tlvs = read_exactly(stream, words * 4 - 4), []
    while body:
        kind, words = body[0], body[1]
        if words == 0 or words * 4 > len(body):
            raise SystemExit("a TLV with a wrong length in %s" % body.hex())
        tlvs.append({"type": kind, "value": body[2 : words * 4].hex()})
        body = body[words * 4 :]
    return tlvs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server", help="HOST:PORT")
    parser.add_argument("--target", help="ADDRESS:PORT of a Connect TLV")
    parser.add_argument("--options", default="", help="its TCP options, hexadecimal")
    parser.add_argument("--cookie", help="a Cookie TLV, hexadecimal")
    parser.add_argument("--info", action="store_true", help="an Info TLV")
    parser.add_argument("--tlv", type=int, help="an empty TLV of this type")
    parser.add_argument("--version", type=int, default=VERSION)
    parser.add_argument("--send", default="", help="payload")
    arguments = parser.parse_args()
    tlvs = []
    if arguments.info:
        tlvs.append(tlv(INFO, bytes(2)))
    if arguments.target:
        tlvs.append(connect(arguments.target, bytes.fromhex(arguments.options)))
    if arguments.cookie:
        tlvs.append(tlv(COOKIE, bytes(2) + bytes.fromhex(arguments.cookie)))
    if arguments.tlv is not None:
        tlvs.append(tlv(arguments.tlv, bytes(2)))

    host, _, port = arguments.server.rpartition(":")
    with socket.create_connection((host, int(port)), LIMIT) as connection:
        # Zero round trips: the payload does not wait for the answer.
        connection.sendall(message(tlvs, arguments.version) + arguments.send.encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            tlvs, payload = read_message(stream), stream.read()
            answer = {"tlvs": tlvs, "bytes": len(payload), "sum": sum(payload)}
    print(json.dumps(answer))


main()
