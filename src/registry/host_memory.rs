//! The memory available to this process, by which the cache of keys is sized.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::model::locked;

/// How long a measurement is used.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// Returns the bytes that keys kept open in host memory may take: `limit`, or half of the available memory.
pub fn host_keys(limit: Option<u64>) -> u64 {
    limit.unwrap_or_else(|| known_memory() / 2)
}

/// Returns the available memory, as measured a few seconds ago at most: each job asks, and a measurement reads half a
/// dozen files.
fn known_memory() -> u64 {
    static KNOWN: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let mut known = locked(&KNOWN);
    match *known {
        Some((at, memory)) if at.elapsed() < MEASURE_EVERY => memory,
        _ => known.insert((Instant::now(), host_memory())).1,
    }
}

/// Returns the memory that this process may use, in bytes: the smaller of the machine's and its control group's.
fn host_memory() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_memory(&groups, |file| std::fs::read_to_string(file).ok());
    // No such files, so this is not Linux: assume a modest machine.
    machine.into_iter().chain(group).min().unwrap_or(8 << 30)
}

/// Returns the lowest memory limit of a process's control groups, of either version, and their ancestors. `groups` is
/// the content of /proc/self/cgroup. In a container it may name groups of the host that are not visible there; the
/// container's own group is then at the root.
fn group_memory(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let has_memory = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let above = Path::new(path).ancestors().filter(move |_| has_memory);
        above.map(move |group| Path::new(root).join(group.strip_prefix("/").unwrap_or(group)).join(file))
    });
    // For no limit, version 2 has "max", and version 1 a number larger than any machine.
    limits.filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_least_that_a_control_group_leaves() {
        let files = [
            ("/sys/fs/cgroup/memory.max", "900\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "700\n"),
            ("/sys/fs/cgroup/system.slice/worker.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "800\n"),
            ("/sys/fs/cgroup/memory/docker/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let read =
            |file: &Path| files.iter().find(|(name, _)| Path::new(name) == file).map(|(_, text)| (*text).to_owned());
        for (groups, least) in [
            ("", None),
            ("3:cpu,cpuacct:/docker/0a\n", None),
            // A container's own group, and groups as named by the host.
            ("0::/\n", Some(900)),
            ("12:cpu:/\n4:memory:/docker/0a\n", Some(800)),
            ("4:hugetlb,memory:/docker\n0::/none\n", Some(800)),
            ("0::/system.slice/worker.service\n", Some(700)),
        ] {
            assert_eq!(group_memory(groups, read), least, "of {groups:?}");
        }
    }
}
