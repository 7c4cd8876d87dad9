//! What a server gives up before its first thread: rights it has no use for. Who breaks in through a bug finds less.
//!
//! Always: as many open files as the system allows it, no core dumps (they would hold passwords and mail), and of
//! root's capabilities only those that serving mail takes. Unless programs are run (targets of the kind `pipe`), which
//! would inherit it: no new privileges, a filter of system calls that no mail server makes, and, where the kernel has
//! Landlock, nothing written into the system's folders.
//!
//! A reload meets with little of it: what may be read and run is not restricted, ports below 1024 may still be bound, and
//! every folder outside of the system's own may be written to, whether the configuration names it already or not. A
//! target within those (`/usr/local/mail`) that a reload adds needs a restart, and so do programs that want more rights;
//! `app::reload` says so of the latter. What cannot be done is said in the log and does not keep the server from starting.
//!
//! Leaves out: the user and the mount table, which are systemd's business (`conf/systemd`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::config::{Config, Target};

/// Entries of `/` that hold programs, their settings, the kernel's faces and devices. All others may be written to.
const SYSTEM: [&str; 8] = ["bin", "boot", "dev", "etc", "proc", "sbin", "sys", "usr"];
/// `lib`, `lib64` and their kin, likewise.
const SYSTEM_LIBRARIES: &str = "lib";

/// What root's server keeps: low ports also after a reload, and folders, keys and mailboxes of other users.
const KEPT: CapabilitySet = CapabilitySet::NET_BIND_SERVICE
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::CHOWN);

/// What was done and what could not be, for the log, which has not begun when it is done.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    done: Vec<String>,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Confinement {
    pub(super) fn tell(&self) {
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
        for note in &self.notes {
            tracing::info!("{note}");
        }
        tracing::info!("confined: {}", self.done.join(", "));
    }
}

/// To be called before there is a second thread: most of it holds for the thread that asks, and those it starts.
pub(super) fn confine(config: &Config) -> Confinement {
    let mut confinement = Confinement::default();
    confinement.raise_open_files(config);
    confinement.forbid_core_dumps();
    confinement.drop_capabilities();
    let pipe = config.targets.iter().find(|(_, target)| matches!(target, Target::Pipe { .. }));
    if let Some((name, _)) = pipe {
        confinement.notes.push(format!(
            "targets.{name} runs a program, which would be confined too: system calls are not filtered, and the \
             system's folders are as writable as they are for this user"
        ));
        return confinement;
    }
    confinement.protect_system(config);
    confinement.filter_calls();
    confinement
}

impl Confinement {
    fn raise_open_files(&mut self, config: &Config) {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        if current != maximum
            && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        {
            self.warnings.push(format!("the limit of open files cannot be raised to its maximum: {error}"));
        }
        let Some(files) = getrlimit(Resource::Nofile).current else {
            return self.done.push("any number of open files".to_owned());
        };
        self.done.push(format!("{files} open files at most"));
        let connections = crate::server::limits::connections_for(files);
        if connections < config.limits.connections {
            self.warnings.push(format!(
                "limits.connections = {} is more than {files} open files are good for: {connections} connections are \
                 taken, further ones get 421; raise the limit (LimitNOFILE in the systemd unit, ulimit -Hn) or lower \
                 limits.connections",
                config.limits.connections
            ));
        }
    }

    fn forbid_core_dumps(&mut self) {
        // Not 0: with a program in kernel.core_pattern only 1 keeps the kernel from dumping (core(5)).
        let one = Rlimit { current: Some(1), maximum: Some(1) };
        match setrlimit(Resource::Core, one) {
            Ok(()) => self.done.push("no core dumps".to_owned()),
            Err(error) => self.notes.push(format!("core dumps cannot be forbidden: {error}")),
        }
    }

    /// Programs that a server of root runs get root's capabilities back, as they would from any other parent.
    fn drop_capabilities(&mut self) {
        if geteuid().is_root() {
            self.warnings.push(
                "running as root: a server that was broken into could change any file; start it by the systemd unit \
                 that comes with it, or as a user of its own with CAP_NET_BIND_SERVICE for ports below 1024"
                    .to_owned(),
            );
        }
        let dropped = capabilities(None).and_then(|had| {
            let kept = CapabilitySets {
                effective: had.effective & KEPT,
                permitted: had.permitted & KEPT,
                inheritable: had.inheritable & KEPT,
            };
            if kept != had {
                set_capabilities(None, kept)?;
            }
            Ok(kept.permitted)
        });
        match dropped {
            Ok(kept) if kept.is_empty() => self.done.push("no capabilities".to_owned()),
            Ok(kept) => self.done.push(format!("capabilities {}", names(kept))),
            Err(error) => self.warnings.push(format!("capabilities cannot be given up: {error}")),
        }
    }

    fn protect_system(&mut self, config: &Config) {
        // What is made at the start is made now, so that a rule can name it.
        let _ = fs::create_dir_all(&config.data_dir);
        match writable(config).and_then(|folders| restrict_writes(&folders)) {
            Ok(()) => self.done.push("system folders not writable".to_owned()),
            Err(why) => self.notes.push(format!("system folders are not protected by Landlock: {why}")),
        }
    }

    fn filter_calls(&mut self) {
        match filter().and_then(|filter| apply_filter(&filter).map_err(|error| error.to_string())) {
            Ok(()) => self.done.push(format!("{} system calls refused, no new privileges", refused_calls().len())),
            Err(why) => self.notes.push(format!("system calls are not filtered: {why}")),
        }
    }
}

fn names(set: CapabilitySet) -> String {
    set.iter_names().fold(String::new(), |mut all, (name, _)| {
        let _ = write!(all, "{}{name}", if all.is_empty() { "" } else { " " });
        all
    })
}

/// Folders that may be written to: whatever lies beside the system's, and what the configuration names within those.
fn writable(config: &Config) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir("/").map_err(|error| format!("/ cannot be read: {error}"))?;
    let mut folders: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !is_systems(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    for path in named(config) {
        // Links are followed: what counts is where it lies.
        let there = path.ancestors().find_map(|path| fs::canonicalize(path).ok()).unwrap_or_default();
        if there.parent().is_none() {
            return Err(format!("{} lies right below / and is not there yet", path.display()));
        }
        folders.push(there);
    }
    folders.push("/dev/null".into());
    Ok(folders)
}

fn is_systems(name: &str) -> bool {
    SYSTEM.contains(&name) || name.starts_with(SYSTEM_LIBRARIES)
}

/// Where the configuration has files written.
fn named(config: &Config) -> Vec<&Path> {
    let targets = config.targets.values().filter_map(|target| match target {
        Target::Maildir { path } => Some(path.as_path()),
        Target::File { path } => Some(path.root()),
        _ => None,
    });
    let archives = config.archive.iter().map(|archive| archive.path.root());
    let pickups = config.pickup.values().map(|pickup| pickup.path.as_path());
    let own = [config.data_dir.as_path(), config.delivery.file_path.root()];
    targets.chain(archives).chain(pickups).chain(own).collect()
}

/// From now on this thread writes nowhere else.
fn restrict_writes(folders: &[PathBuf]) -> Result<(), String> {
    // Without `Refer` a file could not be moved from one folder to another, which a Maildir lives by; kernels before
    // 5.19 have Landlock without it.
    let needed: BitFlags<AccessFs> = AccessFs::from_write(ABI::V2);
    let wanted: BitFlags<AccessFs> = AccessFs::from_write(ABI::V3);
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(needed)
        .map_err(|error| told(&error))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(wanted)
        .map_err(|error| told(&error))?
        .create()
        .map_err(|error| told(&error))?;
    for folder in folders {
        let place = PathFd::new(folder).map_err(|error| told(&error))?;
        let access = if folder.is_dir() { wanted } else { wanted & AccessFs::from_file(ABI::V3) };
        rules = rules.add_rule(PathBeneath::new(place, access)).map_err(|error| told(&error))?;
    }
    match rules.restrict_self().map_err(|error| told(&error))?.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel does not have it".to_owned()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn filter() -> Result<BpfProgram, String> {
    let architecture = std::env::consts::ARCH.try_into().map_err(|_| "not known for this processor".to_owned())?;
    let rules: BTreeMap<i64, Vec<_>> = refused_calls().into_iter().map(|call| (call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture);
    filter.and_then(BpfProgram::try_from).map_err(|error| error.to_string())
}

/// Calls that change the machine, look into other processes, or have been ways out of many a sandbox. A list of what
/// is refused, not of what is allowed: a new version of the C library must not stop a mail server.
fn refused_calls() -> Vec<i64> {
    let all = vec![
        // Other processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        // Mounts, roots and namespaces.
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_quotactl,
        libc::SYS_acct,
        // The kernel.
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_reboot,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_syslog,
        libc::SYS_fanotify_init,
        libc::SYS_personality,
        // Clock and names of the machine.
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        // Other users.
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_setreuid,
        libc::SYS_setregid,
        libc::SYS_setresuid,
        libc::SYS_setresgid,
        libc::SYS_setgroups,
        libc::SYS_setfsuid,
        libc::SYS_setfsgid,
    ];
    #[cfg(target_arch = "x86_64")]
    let all = [all, vec![libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt]].concat();
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::io::ErrorKind;
    use std::os::unix::fs::symlink;

    use super::*;

    fn config(folder: &Path, more: &str) -> Config {
        let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n{more}", folder.display());
        crate::config::parse("test.toml", &text).unwrap()
    }

    #[test]
    fn the_systems_folders_are_not_among_those_that_may_be_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let folders = writable(&config(folder.path(), "")).unwrap();
        for forbidden in ["/etc/passwd", "/usr/bin/sh", "/proc/sys", "/sys/kernel", "/boot", "/lib", "/dev/sda"] {
            assert!(!folders.iter().any(|folder| Path::new(forbidden).starts_with(folder)), "{forbidden}: {folders:?}");
        }
        for allowed in [folder.path(), Path::new("/var/mail/sales"), Path::new("/tmp/x")] {
            assert!(folders.iter().any(|folder| allowed.starts_with(folder)), "{allowed:?}: {folders:?}");
        }
    }

    #[test]
    fn what_the_configuration_names_may_be_written_to_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        symlink("/usr", folder.path().join("link")).unwrap();
        let more = format!(
            "[targets.odd]\nkind = \"maildir\"\npath = \"/usr/no-such-folder/box\"\n\
             [targets.linked]\nkind = \"file\"\npath = \"{}/link/share/{{date}}/{{id}}.eml\"\n",
            folder.path().display()
        );
        let folders = writable(&config(folder.path(), &more)).unwrap();
        for named in ["/usr", "/usr/share"] {
            assert!(folders.contains(&named.into()), "{named}: {folders:?}");
        }
        let root = writable(&config(folder.path(), "[targets.a]\nkind = \"maildir\"\npath = \"/no-such-folder-1\"\n"));
        assert!(root.unwrap_err().contains("right below /"));
    }

    /// Each in a thread of its own, which is all that it holds for.
    #[test]
    fn nothing_is_written_outside_and_everything_is_possible_inside() {
        let folder = tempfile::tempdir().unwrap();
        let [inside, other, outside] = ["inside", "other", "outside"].map(|name| folder.path().join(name));
        for folder in [&inside, &other, &outside] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(outside.join("there"), "before").unwrap();
        let tried = std::thread::spawn(move || {
            if let Err(why) = restrict_writes(&[inside.clone(), other.clone()]) {
                return Some(why);
            }
            fs::create_dir_all(inside.join("tmp/new")).unwrap();
            fs::write(inside.join("tmp/message"), "hello").unwrap();
            fs::rename(inside.join("tmp/message"), inside.join("tmp/new/message")).unwrap();
            fs::rename(inside.join("tmp/new/message"), other.join("message")).unwrap();
            fs::hard_link(other.join("message"), inside.join("copy")).unwrap();
            symlink("copy", inside.join("link")).unwrap();
            fs::File::options().write(true).truncate(true).open(inside.join("copy")).unwrap();
            fs::remove_file(inside.join("copy")).unwrap();
            let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            assert!(denied(fs::write(outside.join("new"), "x").unwrap_err()));
            assert!(denied(fs::write(outside.join("there"), "x").unwrap_err()));
            assert!(denied(fs::create_dir(outside.join("folder")).unwrap_err()));
            assert!(denied(fs::remove_file(outside.join("there")).unwrap_err()));
            assert!(fs::rename(other.join("message"), outside.join("message")).is_err());
            assert_eq!(fs::read_to_string(outside.join("there")).unwrap(), "before", "reading is free");
            None
        });
        if let Some(why) = tried.join().unwrap() {
            eprintln!("WARNING: the test of Landlock is SKIPPED: {why}");
        }
    }

    #[test]
    fn calls_on_the_list_are_refused_and_others_are_not() {
        let filter = filter().unwrap();
        std::thread::spawn(move || {
            assert!(apply_filter(&filter).is_ok());
            // Root may, but for the filter, and would be where it is already.
            assert_eq!(rustix::process::chroot("/").unwrap_err(), rustix::io::Errno::PERM);
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
            assert_eq!(std::process::Command::new("true").status().unwrap().code(), Some(0));
        })
        .join()
        .unwrap();
    }
}
