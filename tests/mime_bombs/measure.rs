//! What a process costs, as the kernel tells it.

use std::time::{Duration, Instant};

/// The CPU time of a process so far.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ, which is a hundred on every Linux.
    Duration::from_millis(ticks * 10)
}

/// One of the values in /proc/PID/status, in bytes.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// The highest memory is from now on measured anew.
pub fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// Until the process does no more than it does at rest.
pub async fn settled(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let before = cpu(pid);
        tokio::time::sleep(Duration::from_millis(30)).await;
        if cpu(pid) - before <= Duration::from_millis(10) {
            return;
        }
        assert!(Instant::now() < deadline, "it never comes to rest");
    }
}
