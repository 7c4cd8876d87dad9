//! A limit of memory that the kernel enforces: a control group (cgroup) of our own, below the one that this process is
//! in, where the machine lets us make one.

use std::fs;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// What the two versions call things.
struct Names {
    limit: &'static str,
    /// What was put away counts too: else the limit would be one of speed. Its file, and what is written there for a limit.
    swap: (&'static str, fn(u64) -> u64),
    /// Holds a line `oom_kill N`.
    ended: &'static str,
    peak: &'static str,
}

const FIRST: Names = Names {
    limit: "memory.limit_in_bytes",
    swap: ("memory.memsw.limit_in_bytes", |limit| limit),
    ended: "memory.oom_control",
    peak: "memory.max_usage_in_bytes",
};
const SECOND: Names =
    Names { limit: "memory.max", swap: ("memory.swap.max", |_| 0), ended: "memory.events", peak: "memory.peak" };

pub struct Group {
    folder: PathBuf,
    names: Names,
}

impl Group {
    /// Its processes have so many bytes in all, pages of files included. `Err`: why there is none here.
    pub fn of_memory(bytes: u64) -> Result<Group, String> {
        let (parent, names) = parent()?;
        let folder = parent.join(format!("postrider-little-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Group { folder, names };
        let limit = group.folder.join(group.names.limit);
        fs::write(&limit, bytes.to_string()).map_err(|error| format!("{}: {error}", limit.display()))?;
        let (swap, for_limit) = group.names.swap;
        // There is no such file where the kernel knows no swap.
        let _ = fs::write(group.folder.join(swap), for_limit(bytes).to_string());
        Ok(group)
    }

    /// A command that runs what follows in its own process, in this group from its first page on.
    pub fn wrapper(&self) -> Vec<String> {
        let folder = self.folder.display().to_string();
        ["/bin/sh", "-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"", &folder].map(str::to_owned).to_vec()
    }

    /// How many of its processes the kernel has ended for want of memory.
    pub fn ended(&self) -> u64 {
        self.counter(self.names.ended, "oom_kill ")
    }

    pub fn peak(&self) -> u64 {
        self.counter(self.names.peak, "")
    }

    fn counter(&self, file: &str, before: &str) -> u64 {
        let path = self.folder.join(file);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let line = text.lines().find_map(|line| line.strip_prefix(before));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{}: {text}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended before: the server is taken away first.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The group that this process is in, as far as memory goes.
fn parent() -> Result<(PathBuf, Names), String> {
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("/proc/self/cgroup: {error}"))?;
    let path_of = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let has = fields.next()?.split(',').any(|controller| controller == wanted);
            has.then(|| fields.next()?.strip_prefix('/')).flatten()
        })
    };
    let (below, names) = match (path_of("memory"), path_of("")) {
        (Some(path), _) => (Path::new(MOUNT).join("memory").join(path), FIRST),
        (None, Some(path)) => (Path::new(MOUNT).join(path), SECOND),
        (None, None) => return Err("there are no control groups of memory".to_owned()),
    };
    let is_there = below.join("cgroup.procs").exists();
    if is_there { Ok((below, names)) } else { Err(format!("{} is not there", below.display())) }
}
