//! Child processes that end with their owner, and what /proc tells of them: CPU time and memory.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Clock ticks a second in /proc/PID/stat; fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// How long a process may take to end by itself.
const END_TIME: Duration = Duration::from_secs(20);

/// Ends a program when its standard input ends, so also when the owner dies: for programs that change
/// their user, which makes the kernel forget what `setpriv --pdeathsig` asked for. The watcher outlives
/// a signal to the whole group.
const WATCHED: &str = r#"exec 3<&0 4>&2 2>/dev/null
"$@" 2>&4 3<&- 4>&- </dev/null &
program=$!
{ trap '' INT TERM; exec 4>&-; read -r _ <&3; kill "$program"; } &
watcher=$!
wait "$program"
status=$?
kill -s KILL "$watcher"
exit "$status""#;

/// A child that is ended when the value goes, or when this process dies.
pub struct Process {
    child: Child,
    name: &'static str,
}

impl Process {
    /// `set_up` says where its output goes, and what else has to be said to the command that is run.
    pub fn start_with(name: &'static str, command: Command, set_up: impl FnOnce(&mut Command)) -> Process {
        let mut command = tied(command);
        set_up(&mut command);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Process { child, name }
    }

    /// A program that changes its user. The process is that of a shell, whose child it is.
    pub fn start_watched(name: &'static str, command: Command, set_up: impl FnOnce(&mut Command)) -> Process {
        let mut outer = Command::new("/bin/sh");
        outer.arg("-c").arg(WATCHED).arg("sh").arg(command.get_program()).args(command.get_args());
        copy_environment(&command, &mut outer);
        set_up(&mut outer);
        outer.stdin(Stdio::piped());
        let child = outer.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        Process { child, name }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the process to end by itself; false if it was not over in time, or failed.
    pub fn wait(&mut self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_micros(500)),
                _ => return false,
            }
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and insists if it does not.
    pub fn stop(&mut self) {
        if self.is_running() {
            match (self.child.stdin.take(), Pid::from_raw(self.child.id() as i32)) {
                // Of the one that is watched: this ends it.
                (Some(input), _) => drop(input),
                (None, Some(pid)) => kill_process(pid, Signal::TERM).unwrap_or_default(),
                (None, None) => {}
            }
            let deadline = Instant::now() + END_TIME;
            while self.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if self.is_running() {
            super::say(format!("{} did not end within {} s and is killed", self.name, END_TIME.as_secs()));
            self.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Through setpriv, where there is one: the kernel then ends the child if this process is killed.
fn tied(command: Command) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return command;
    }
    let mut outer = Command::new(setpriv);
    outer.arg("--pdeathsig").arg("TERM").arg(command.get_program()).args(command.get_args());
    copy_environment(&command, &mut outer);
    outer
}

fn copy_environment(from: &Command, to: &mut Command) {
    to.envs(from.get_envs().filter_map(|(key, value)| Some((key, value?))));
}

/// CPU seconds that a process has used, with those of its children: the living ones, and the ended
/// ones that it has waited for. Exact for a server that forks its workers itself and reaps them, as
/// Postfix' master does.
pub fn cpu_seconds(pid: u32) -> f64 {
    let own: f64 = stat(pid).map_or(0.0, |fields| ticks(&fields, &[11, 12, 13, 14]));
    own + children(pid).into_iter().map(cpu_seconds).sum::<f64>()
}

fn ticks(fields: &[String], at: &[usize]) -> f64 {
    at.iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// The fields of /proc/PID/stat behind the name, so the first is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

pub fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child =
        |child: &u32| stat(*child).is_some_and(|fields| fields.get(1).is_some_and(|p| *p == pid.to_string()));
    pids.filter(is_child).collect()
}

/// Resident bytes of a process and its children; pages that several map count once (PSS).
pub fn memory_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    kib * 1024 + children(pid).into_iter().map(memory_bytes).sum::<u64>()
}

/// The most that a process has ever had resident; pages that others map too count whole.
pub fn peak_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// What a process has resident now and no file holds: the kernel could not give it back.
pub fn anonymous_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let now = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    now.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Bytes that a process and its children, ended ones included, have caused to be written to the disk.
pub fn written_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<u64>().ok()).unwrap_or(0);
    own + children(pid).into_iter().map(written_bytes).sum::<u64>()
}
