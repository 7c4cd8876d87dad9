#!/usr/bin/env python3
"""What dkimpy makes of messages with DKIM signatures and ARC sets, without asking DNS.

    signatures.py judge CASES                       CASES: one JSON object a line, {"name", "message": a
                                                    file with CRLF lines, "records": {name: text or null}}
    signatures.py seal MESSAGE KEY SELECTOR DOMAIN SERVICE   prints the fields of an ARC set more; KEY is
                                                    an RSA key in PEM, SERVICE whose results are sealed

judge prints one JSON object a line: {"name", "dkim": [true or false for each signature], "arc": "pass",
"fail", "none", "ended"}. Exit status 2: no dkimpy.
"""

import json
import sys

try:
    import authres  # noqa: F401  (dkimpy needs it for ARC)
    import dkim
    import nacl.signing  # noqa: F401  (and this for Ed25519)
except ImportError as error:
    print(f"cannot verify: {error}")
    sys.exit(2)

SIGNATURES_MAX = 10


def judge(case):
    with open(case["message"], "rb") as file:
        message = file.read()
    records = case["records"]

    def ask(name, timeout=5):
        text = records.get(name.decode("ascii").rstrip("."))
        return text.encode("ascii") if text else None

    verdicts = []
    try:
        headers, _ = dkim.rfc822_parse(message)
        count = sum(1 for name, _ in headers if name.lower() == b"dkim-signature")
    except Exception:  # a header that it cannot read: an IndexError, too
        count = 0
    for index in range(min(count, SIGNATURES_MAX)):
        try:
            verdicts.append(bool(dkim.DKIM(message).verify(idx=index, dnsfunc=ask)))
        except Exception:
            verdicts.append(False)
    try:
        state, _, _ = dkim.arc_verify(message, dnsfunc=ask)
        state = "ended" if state is None else state.decode("ascii")
    except Exception:
        state = "none"
    return {"name": case["name"], "dkim": verdicts, "arc": state}


def main(mode, *words):
    if mode == "judge":
        with open(words[0], encoding="utf-8") as file:
            for line in file:
                print(json.dumps(judge(json.loads(line))))
    else:
        message_path, key_path, selector, domain, service = words
        with open(message_path, "rb") as file:
            message = file.read()
        with open(key_path, "rb") as file:
            key = file.read()
        fields = dkim.arc_sign(message, selector.encode(), domain.encode(), key, service.encode())
        sys.stdout.buffer.write(b"".join(fields))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
