#!/usr/bin/env python3
"""Verifies every DKIM signature of a message with dkimpy, without asking DNS.

    dkim_verify.py MESSAGE RECORDS

MESSAGE is a file with CRLF lines. RECORDS is a file as `postrider dns --json` prints it: one JSON
object a line with "name", "type" and "value". Prints one line for each signature, "pass" or "fail"
with algorithm and selector. Exit status 0: all pass; 1: one fails or there is none; 2: no dkimpy.
"""

import json
import re
import sys

try:
    import dkim
    import nacl.signing  # noqa: F401  (dkimpy needs it for Ed25519)
except ImportError as error:
    print(f"cannot verify: {error}")
    sys.exit(2)


def main(message_path, records_path):
    with open(message_path, "rb") as file:
        message = file.read()
    texts = {}
    with open(records_path, encoding="ascii") as file:
        for line in file:
            record = json.loads(line)
            if record["type"] == "TXT":
                texts[record["name"].rstrip(".")] = record["value"].encode("ascii")

    def ask(name, timeout=5):
        return texts.get(name.decode("ascii").rstrip("."))

    head = message.split(b"\r\n\r\n", 1)[0] + b"\r\n"
    signatures = re.findall(rb"^DKIM-Signature:((?:.*\r\n)(?:[ \t].*\r\n)*)", head, re.M | re.I)
    good = bool(signatures)
    for index, value in enumerate(signatures):
        tags = dict(re.findall(rb"(?:^|;)\s*(a|s)=\s*([^;\s]+)", value))
        label = f"{tags.get(b'a', b'?').decode()} {tags.get(b's', b'?').decode()}"
        try:
            passed = dkim.DKIM(message).verify(idx=index, dnsfunc=ask)
            reason = ""
        except dkim.DKIMException as error:
            passed, reason = False, f" ({error})"
        print(f"{'pass' if passed else 'fail'} {label}{reason}")
        good = good and passed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
