#!/usr/bin/env python3
"""Plants the faults of tests/mutants.toml, one at a time, in a copy of the sources, and runs the harness that
must notice each. Ends with 1 if one is not noticed, or could not be tried. The sources themselves are never touched.
Names on the command line choose among them."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ["CARGO_TARGET_DIR"])
FOLDER = TARGET / "mutants"
TREE = FOLDER / "tree"
# Seconds. A harness that hangs has noticed nothing.
PATIENCE = 1200


def copy_tree():
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in listed.decode().split("\0"):
        source, target = ROOT / name, TREE / name
        if name and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            # With its time: what has not changed since the last mutant is not compiled again.
            shutil.copy2(source, target)


def share_dependencies():
    """Links to what is compiled already, so that only the crate itself is compiled again."""
    ours = FOLDER / "target" / "debug"
    if ours.exists():
        return
    for part in ["build", "deps", ".fingerprint"]:
        (ours / part).mkdir(parents=True)
        names = [e.name for e in os.scandir(TARGET / "debug" / part) if "postrider" not in e.name]
        if part == "deps":
            names = [n for n in names if n.endswith((".rlib", ".rmeta", ".so", ".d"))]
        for name in names:
            subprocess.run(["cp", "-al", str(TARGET / "debug" / part / name), str(ours / part)], check=True)


def plant(mutant):
    path = TREE / mutant["file"]
    text = path.read_text()
    if text.count(mutant["from"]) != 1:
        return f"{mutant['file']} holds its place {text.count(mutant['from'])} times: renew tests/mutants.toml"
    path.write_text(text.replace(mutant["from"], mutant["to"]))
    return None


def cargo(words, log):
    environment = os.environ | {"CARGO_TARGET_DIR": str(FOLDER / "target")}
    command = ["cargo", "test", "--locked", *words]
    with open(log, "ab") as out:
        # A group of its own: whatever the harness has started ends with it.
        running = subprocess.Popen(command, cwd=TREE, env=environment, stdout=out, stderr=out, process_group=0)
        try:
            return running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def red_line(text, test):
    """What the test said when it failed; None if it did not fail."""
    # As the harness lists them at its end.
    if f"\n    {test}\n" not in text:
        return None
    said = re.search(rf"thread '{re.escape(test)}'[^\n]* panicked at ([^\n]*)\n+([^\n]*)(?:\n+([^\n]*))?", text)
    return " ".join(part for part in said.groups() if part)[:300] if said else "FAILED"


def try_one(mutant):
    """What became of it: `noticed`, or what is wrong; and what the harness said."""
    if mutant.get("needs") == "root" and os.geteuid() != 0:
        return "SKIPPED: needs root", ""
    copy_tree()
    wrong = plant(mutant)
    if wrong:
        return wrong, ""
    log = FOLDER / f"{mutant['name']}.log"
    log.unlink(missing_ok=True)
    selection = mutant["tests"][:2]
    if cargo([*selection, "--no-run"], log) != 0:
        return f"does not compile: {log}", ""
    status = cargo([*selection, "--", *mutant["tests"][2:]], log)
    if status is None:
        return f"its harness hangs: {log}", ""
    if status == 0:
        return f"NOT NOTICED: {log}", ""
    said = red_line(log.read_text(errors="replace"), mutant["red"])
    if said is None:
        return f"something else failed, not {mutant['red']}: {log}", ""
    return "noticed", said


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    share_dependencies()
    mutants = tomllib.loads((ROOT / "tests/mutants.toml").read_text())["mutant"]
    wanted = sys.argv[1:] or [mutant["name"] for mutant in mutants]
    unknown = set(wanted) - {mutant["name"] for mutant in mutants}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    results = {}
    for mutant in (mutant for mutant in mutants if mutant["name"] in wanted):
        since = time.monotonic()
        result, said = try_one(mutant)
        results[mutant["name"]] = {"result": result, "test": mutant["red"], "said": said}
        print(f"{mutant['name']:24} {result:10} {time.monotonic() - since:4.0f} s   {mutant['what']}", flush=True)
        if said:
            print(f"{'':24} {mutant['red']}: {said}", flush=True)
    shutil.rmtree(TREE, ignore_errors=True)
    (FOLDER / "mutants.json").write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(result["result"] != "noticed" for result in results.values()))


if __name__ == "__main__":
    main()
