#!/usr/bin/env python3
"""Makes the JSON files beside it from the published suites (see README.md): convert.py FOLDER, with the
suites' YAML files in FOLDER. Needs PyYAML. Run by hand, when a suite is renewed."""

import ipaddress
import json
import pathlib
import re
import sys

import yaml

HERE = pathlib.Path(__file__).parent


def records(entries):
    """[type, value...] of a name. SPF (type 99) stands for TXT, unless there is a TXT of its own."""
    entries = [entry if isinstance(entry, dict) else {entry: True} for entry in entries]
    has_txt = any("TXT" in entry for entry in entries)
    out = []
    for entry in entries:
        ((kind, value),) = entry.items()
        if kind in ("SPF", "TXT"):
            if value == "NONE" or (kind == "SPF" and has_txt):
                continue
            out.append(["TXT", *([value] if isinstance(value, str) else value)])
        elif kind == "MX":
            out.append(["MX", str(value[1])])
        elif kind in ("TIMEOUT", "SERVFAIL"):
            out.append(["FAIL"])
        else:
            out.append([kind, str(value)])
    return out


def openspf(path):
    """The format of the openspf.org suite."""
    groups = []
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        cases = []
        for name, test in document["tests"].items():
            result = test["result"]
            explanation = test.get("explanation")
            cases.append({
                "name": name,
                "client": test["host"],
                "helo": test.get("helo", ""),
                "sender": test.get("mailfrom", ""),
                "results": result if isinstance(result, list) else [result],
                "explanation": "" if explanation == "DEFAULT" else explanation,
            })
        zone = {str(name): records(entries) for name, entries in document["zonedata"].items()}
        groups.append({"group": " ".join(document.get("description", document.get("comment", "")).split()),
                       "zone": zone, "cases": cases})
    return groups


def mail_auth(path):
    """mail-auth's own format: keys may come again, and each "expect" is a case."""
    groups = []
    count = 0
    for document in re.split(r"(?m)^---\s*$", path.read_text(encoding="utf-8")):
        zone, state, title = {}, {}, ""
        for line in document.splitlines():
            line = line.split("#")[0] if line.lstrip().startswith("#") else line
            match = re.match(r"^\s*(?:- )?(\w+):\s?(.*?)\s*$", line)
            if not match:
                continue
            key, value = match.groups()
            if key in ("a", "aaaa", "mx", "ptr", "spf", "exp"):
                name, _, rest = value.partition(" ")
                items = [item.strip() for item in rest.split(",")]
                if key == "ptr":
                    zone["PTR", ipaddress.ip_address(name).reverse_pointer] = [["PTR", item] for item in items]
                elif key == "mx":
                    hosts = [f"mx{number}.of.{name}" for number in range(len(items))]
                    zone["MX", name] = [["MX", host] for host in hosts]
                    for host, ip in zip(hosts, items):
                        kind = "AAAA" if ":" in ip else "A"
                        zone[kind, host] = [[kind, ip]]
                elif key in ("spf", "exp"):
                    zone["TXT", name] = [["TXT", rest]]
                else:
                    zone[key.upper(), name] = [[key.upper(), item] for item in items]
            elif key in ("domain", "sender", "ip"):
                state[key] = value
            elif key == "name":
                title = value
            elif key == "expect":
                count += 1
                result, _, explanation = value.partition(" ")
                failing = {name: [["FAIL"]] for name in re.findall(r"_dns_error[\w.]*", document)}
                names = {}
                for (_, name), entries in zone.items():
                    names.setdefault(name, []).extend(entries)
                group = {"group": title, "zone": names | failing, "cases": []}
                if groups and (groups[-1]["group"], groups[-1]["zone"]) == (group["group"], group["zone"]):
                    group = groups[-1]
                else:
                    groups.append(group)
                group["cases"].append({
                    "name": f"{path.stem}-{count}",
                    "client": state["ip"],
                    "helo": state["domain"],
                    "sender": state["sender"],
                    "results": [result],
                    "explanation": explanation,
                    "helo_first": True,
                })
    return groups


def write(name, groups):
    text = json.dumps(groups, indent=1, ensure_ascii=True)
    # Short lists and cases on a line of their own.
    text = re.sub(r"\[\s+((?:\"(?:[^\"\\]|\\.)*\",?\s*)+)\]", lambda m: "[" + " ".join(m[1].split("\n")).strip() + "]", text)
    text = re.sub(r",  +", ", ", text)
    (HERE / f"{name}.json").write_text(text + "\n")
    print(name, sum(len(group["cases"]) for group in groups))


def main():
    source = pathlib.Path(sys.argv[1])
    write("rfc7208", openspf(source / "rfc7208-tests.yml"))
    write("rfc4408", openspf(source / "rfc4408-tests.yml"))
    write("blitiri", openspf(source / "blitirispf-tests.yml"))
    write("pyspf", openspf(source / "pyspf-tests.yml"))
    write("mail-auth", [group for path in sorted(source.glob("mail-auth/*.yml")) for group in mail_auth(path)])
    seeds = sorted(source.glob("fuzz-seeds-go-spf/*"))[::6]
    texts = [seed.read_bytes().decode("latin-1") for seed in seeds if seed.stat().st_size <= 150]
    (HERE / "seeds.json").write_text(json.dumps(texts, indent=0) + "\n")
    print("seeds", len(texts))


main()
