#!/usr/bin/env python3
"""Runs the fault programme (tests/faults/programme.toml) and prints its table: each fault, how it is made, what was
measured, and the verdict. Ends with 1 if a row has a fault. Names of rows on the command line choose among them.

    .ci/programme.py day [F1 F3 …]              as on every change
    .ci/programme.py night MINUTES [F1 F3 …]    each row's form of a night, its share of the time; what it did not
                                                reach is said, and is no fault

The table goes to faults/programme.json and programme.txt in the target folder too."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ["CARGO_TARGET_DIR"])
FOLDER = TARGET / "faults"
TARGETS_OF_FUZZ = 26
# Of a share of a night, for the rounds of a test; the rest is for what comes after them (all that is queued is
# delivered). Rows may have another.
ROUNDS = 0.6
NOT_SHOWN = {"seed", "version", "cores", "kernel", "load before"}
TIME_IS_UP = "time was up"


def arguments():
    words = sys.argv[1:]
    form = words.pop(0) if words else ""
    if form not in ("day", "night"):
        sys.exit(__doc__)
    minutes = float(words.pop(0)) if form == "night" else None
    rows = tomllib.loads((ROOT / "tests/faults/programme.toml").read_text())["row"]
    unknown = set(words) - {row["id"] for row in rows}
    if unknown:
        sys.exit(f"no such row: {', '.join(sorted(unknown))}")
    return minutes, [row for row in rows if not words or row["id"] in words]


def peers():
    """What .ci/test.sh has brought here for tests."""
    found = {}
    for variable, name in [("XFSPROGS", "xfsprogs"), ("FAKETIME", "faketime")]:
        folder = TARGET / "peers" / name
        subprocess.run([ROOT / f".ci/{name}.sh", folder], check=True)
        if (folder / "unpacked").exists():
            found[f"POSTRIDER_TEST_{variable}"] = str(folder)
    postfix = TARGET / "bench/postfix"
    subprocess.run([ROOT / ".ci/postfix.sh", postfix], check=True)
    if (postfix / "unpacked").exists():
        found["POSTRIDER_TEST_POSTFIX"] = str(postfix)
    return found


def run(words, environment, until, log):
    """Its output, and its status; no status if the time was up. It has a session of its own, so that all that it has
    started ends with it."""
    with open(log, "w+", encoding="utf-8", errors="replace") as out:
        child = subprocess.Popen(words, cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=out,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = child.wait(None if until is None else max(1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = None
        out.seek(0)
        return out.read(), status


def suites(names):
    """Binary -> tests."""
    found = {}
    for name in names:
        binary, test = name.split(" ")
        found.setdefault(binary, []).append(test)
    return found


def selection(binary):
    return ["--lib"] if binary == "lib" else ["--test", binary]


def build(rows):
    binaries = sorted(suites(name for row in rows for name in [*row["tests"], *row["night"].get("tests", [])]))
    words = [word for binary in binaries for word in selection(binary)]
    if words and subprocess.run(["cargo", "test", "--locked", "--no-run", *words], cwd=ROOT).returncode:
        sys.exit("it does not compile")


def said(output):
    """What tests that held have printed: `---- NAME stdout ----` and lines, with --show-output."""
    found = re.findall(r"^---- \S+ stdout ----\n(.*?)\n\n", output, re.M | re.S)
    return [line for text in found for line in text.splitlines() if line.strip() and not line.startswith("POSTRIDER")]


def run_tests(row, names, environment, until, result):
    for binary, tests in suites(names).items():
        since = time.monotonic()
        words = ["cargo", "test", "--locked", *selection(binary), "--", "--exact", "--show-output", "--test-threads=2"]
        log = FOLDER / f"{row['id']}-{binary}.log"
        output, status = run([*words, *tests], environment, until, log)
        held = re.findall(r"^test (\S+) \.\.\..*?\bok$", output, re.M | re.S)
        result["seconds"] += time.monotonic() - since
        if status is None:
            result["verdict"] = TIME_IS_UP
            return
        result["held"] += len(set(held) & set(tests))
        result["said"] = (result["said"] + said(output))[-8:]
        if "SKIPPED" in output:
            result["skipped"] = True
        if status != 0 or f"{len(tests)} passed" not in output:
            result["verdict"] = f"FAULT: {log}"


def run_command(row, words, environment, until, result):
    since = time.monotonic()
    log = FOLDER / f"{row['id']}-command.log"
    output, status = run(words, environment, until, log)
    result["seconds"] += time.monotonic() - since
    if status is None:
        result["verdict"] = TIME_IS_UP
    elif status != 0:
        result["verdict"] = f"FAULT: {log}"
    if "report" in row and (TARGET / row["report"]).exists():
        found = json.loads((TARGET / row["report"]).read_text())
        result["figures"]["command"] = dict(found.get("about", []))
    else:
        runs = [int(number) for number in re.findall(r"(\d+) runs", output)]
        if runs:
            result["figures"]["command"] = {"targets": len(runs), "inputs": sum(runs)}


def figures(row, result, since):
    for name in row.get("figures", []):
        path = FOLDER / f"{name}.json"
        if not path.exists() or path.stat().st_mtime < since:
            continue
        found = json.loads(path.read_text())
        if isinstance(found, str):
            result["skipped"] = True
            found = {"skipped": found}
        result["figures"][name] = found


def run_row(row, minutes, environment):
    """A night's form with so many minutes; as on every change without."""
    began, wall = time.monotonic(), time.time()
    until = None if minutes is None else began + 60 * minutes
    night = row["night"] if minutes is not None else {}
    names = night.get("tests", row["tests"])
    command = night.get("command", row.get("command"))
    environment = environment | row.get("env", {}) | night.get("env", {})
    if minutes is not None:
        tests = max(1, len(names))
        seconds = 60 * minutes * night.get("rounds", ROUNDS)
        environment |= {"POSTRIDER_FAULTS": "night", "POSTRIDER_FAULTS_SECONDS": str(int(seconds / tests))}
        each = int(seconds * os.cpu_count() / TARGETS_OF_FUZZ)
        environment = {name: value.format(seconds=int(seconds), each=max(1, each)) for name, value in environment.items()}
    else:
        environment |= {"POSTRIDER_FAULTS": "full"}
    result = {"verdict": "ok", "held": 0, "seconds": 0.0, "said": [], "figures": {}, "skipped": False, "rounds": 0}
    for _ in range(night.get("repeat", 1)):
        if result["verdict"] != "ok" or (until is not None and time.monotonic() >= until):
            break
        run_tests(row, names, environment, until, result)
        if command and result["verdict"] == "ok":
            run_command(row, command, environment, until, result)
        result["rounds"] += result["verdict"] == "ok"
    figures(row, result, wall)
    # The first round was whole: what was cut off is one more of the same.
    if result["verdict"] == TIME_IS_UP and result["rounds"]:
        result["verdict"] = "ok"
    if result["verdict"] == "ok" and result["skipped"]:
        result["verdict"] = "ok, part SKIPPED"
    result["not reached"] = night.get("repeat", 1) - result["rounds"]
    return result


def lines(row, result):
    found = [f"{row['id']:4} {row['fault']:34} {result['verdict']:18} {result['seconds']:6.0f} s   "
             f"{result['held']} tests held" + (f", {result['rounds']} rounds" if result["rounds"] > 1 else "")
             + (f", {result['not reached']} rounds not reached" if result["not reached"] else "")]
    details = [row["method"]]
    for name, values in result["figures"].items():
        shown = ", ".join(f"{key} {value}" for key, value in values.items() if key not in NOT_SHOWN)
        details.append(f"{name}: {shown}" if name != "command" else shown)
    details += result["said"]
    for detail in details:
        found += textwrap.wrap(detail, 150, initial_indent=" " * 5, subsequent_indent=" " * 7)
    return found


def main():
    minutes, rows = arguments()
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = peers()
    build(rows)
    until = None if minutes is None else time.monotonic() + 60 * minutes
    weight = sum(row["night"]["weight"] for row in rows)
    results, table = {}, []
    for row in rows:
        share = None
        if until is not None:
            # What earlier rows have not used is everybody's.
            left = max(0.0, until - time.monotonic()) / 60
            share = left * row["night"]["weight"] / weight
            weight -= row["night"]["weight"]
        results[row["id"]] = result = run_row(row, share, environment)
        print(f"{row['id']:4} {row['fault']:34} {result['verdict']} ({result['seconds']:.0f} s)", flush=True)
        table += lines(row, result)
        text = "\n".join(table) + "\n"
        (FOLDER / "programme.txt").write_text(text)
        (FOLDER / "programme.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{text}\n{FOLDER / 'programme.json'}")
    sys.exit(any(result["verdict"].startswith("FAULT") for result in results.values()))


if __name__ == "__main__":
    main()
