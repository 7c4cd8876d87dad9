#!/usr/bin/env python3
"""The rest of the world for the test of the package: a name server by which every domain's mail goes to mx.DOMAIN, and a
server on port 25 there that takes each message into a file of its own. Both are at ADDRESS.

    far.py ADDRESS FOLDER      FOLDER/1.eml, FOLDER/2.eml, …, with the envelope as two lines in front; FOLDER/ready at
                               the beginning
"""

import os
import socket
import socketserver
import struct
import sys
import threading

ADDRESS, FOLDER = sys.argv[1:]
A, MX = 1, 15
NO_SUCH_NAME = 3


def encoded(name):
    return b"".join(bytes([len(label)]) + label for label in name.split(b".")) + b"\0"


def answer(query):
    """One question, one answer or none; names that begin with _ are not there."""
    identifier, _, _ = struct.unpack("!HHH", query[:6])
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]])
        at += 1 + query[at]
    name, kind = b".".join(labels), struct.unpack("!H", query[at + 1 : at + 3])[0]
    question = query[12 : at + 5]
    if kind == MX and not name.startswith(b"_"):
        data = struct.pack("!H", 10) + encoded(b"mx." + name)
    elif kind == A and name.startswith(b"mx."):
        data = socket.inet_aton(ADDRESS)
    else:
        data = None
    code = NO_SUCH_NAME if name.startswith(b"_") else 0
    head = struct.pack("!HHHHHH", identifier, 0x8580 | code, 1, 0 if data is None else 1, 0, 0)
    record = b"" if data is None else b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(data)) + data
    return head + question + record


class Names(socketserver.BaseRequestHandler):
    def handle(self):
        query, sock = self.request
        sock.sendto(answer(query), self.client_address)


class Mail(socketserver.StreamRequestHandler):
    taken = 0

    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        self.say("220 mx.example.net")
        envelope = []
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                self.say("354 go on")
                content = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    content += line
                self.keep(envelope, content)
                self.say("250 taken")
            elif verb == b"QUIT":
                self.say("221 bye")
                return
            else:
                if verb in (b"MAIL", b"RCPT"):
                    envelope = ([] if verb == b"MAIL" else envelope) + [line]
                self.say("250 mx.example.net")

    def keep(self, envelope, content):
        Mail.taken += 1
        number = Mail.taken
        temporary = f"{FOLDER}/.{number}"
        with open(temporary, "wb") as file:
            file.write(b"".join(envelope) + content)
        os.rename(temporary, f"{FOLDER}/{number}.eml")


names = socketserver.UDPServer((ADDRESS, 53), Names)
mail = socketserver.TCPServer((ADDRESS, 25), Mail)
threading.Thread(target=names.serve_forever, daemon=True).start()
open(f"{FOLDER}/ready", "w").close()
mail.serve_forever()
