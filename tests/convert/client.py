#!/usr/bin/env python3
"""A client of the 0-RTT TCP Convert Protocol, written from RFC 8803 alone.

usage: client.py HOST:PORT REQUESTS

REQUESTS is a JSON list; of each one the message is sent on a connection of its own, and payload right
after it. A request may have "target" (ADDRESS:PORT of a Connect TLV), "options" (its TCP options),
"cookie" (a Cookie TLV), "info" (an Info TLV), "tlv" (the type of an empty TLV), "version" of the fixed
header, and "send", the payload. Bytes are hexadecimal. With "keep" the connection stays open until all
requests have been made, and only the message is waited for.

Prints a JSON list of what came back: "tlvs", a list of {"type", "value"}, and of the bytes after the
message "bytes", how many they are, and "sum", what they add up to; or "failure".
"""

import ipaddress
import json
import socket
import struct
import sys

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
        raise ValueError("the connection ended in the middle of a message: %r" % data)
    return data


def read_message(stream):
    version, words, magic = struct.unpack("!BBH", read_exactly(stream, 4))
    if (version, magic) != (VERSION, MAGIC):
        raise ValueError("no Convert message: version %d, magic %#x" % (version, magic))
    body, tlvs = read_exactly(stream, words * 4 - 4), []
    while body:
        kind, words = body[0], body[1]
        if words == 0 or words * 4 > len(body):
            raise ValueError("a TLV with a wrong length in %s" % body.hex())
        tlvs.append({"type": kind, "value": body[2 : words * 4].hex()})
        body = body[words * 4 :]
    return tlvs


def tlvs_of(request):
    tlvs = []
    if request.get("info"):
        tlvs.append(tlv(INFO, bytes(2)))
    if "target" in request:
        tlvs.append(connect(request["target"], bytes.fromhex(request.get("options", ""))))
    if "cookie" in request:
        tlvs.append(tlv(COOKIE, bytes(2) + bytes.fromhex(request["cookie"])))
    if "tlv" in request:
        tlvs.append(tlv(request["tlv"], bytes(2)))
    return tlvs


def exchange(server, request):
    sent = message(tlvs_of(request), request.get("version", VERSION))
    if request.get("keep"):
        connection = socket.create_connection(server, LIMIT)
        kept.append(connection)
        connection.sendall(sent)
        return {"tlvs": read_message(connection.makefile("rb"))}
    with socket.create_connection(server, LIMIT) as connection:
        # Zero round trips: the payload does not wait for the answer.
        connection.sendall(sent + request.get("send", "").encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            tlvs, payload = read_message(stream), stream.read()
    return {"tlvs": tlvs, "bytes": len(payload), "sum": sum(payload)}


def answer(server, request):
    try:
        return exchange(server, request)
    except (OSError, ValueError) as error:
        return {"failure": str(error)}


kept = []
host, _, port = sys.argv[1].rpartition(":")
print(json.dumps([answer((host, int(port)), request) for request in json.loads(sys.argv[2])]))
