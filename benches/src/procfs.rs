//! What the kernel knows about a process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Proportional set size of a process, in KiB, by kind of memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pss {
    /// All of it.
    pub total: u64,
    /// Heap, stacks and other private memory.
    pub anon: u64,
    /// The binary and other mapped files.
    pub file: u64,
    /// Shared memory.
    pub shmem: u64,
}

/// Reads `/proc/PID/smaps_rollup`.
pub fn pss(pid: u32) -> Result<Pss> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).context(path)?;
    Ok(parse_pss(&text))
}

fn parse_pss(text: &str) -> Pss {
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or(0)
    };
    Pss {
        total: value("Pss:"),
        anon: value("Pss_Anon:"),
        file: value("Pss_File:"),
        shmem: value("Pss_Shmem:"),
    }
}

/// What the threads of a process have done, by thread id.
#[derive(Clone, Debug, Default)]
pub struct Threads(BTreeMap<u32, Thread>);

#[derive(Clone, Debug, Default)]
struct Thread {
    name: String,
    on_cpu: u64,
    voluntary: u64,
}

/// Reads the counters of all threads of a process.
pub fn threads(pid: u32) -> Result<Threads> {
    let dir = format!("/proc/{pid}/task");
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(&dir).context(dir)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A thread may end between the two looks.
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let on_cpu = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok());
        let voluntary = read("status")
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok());
        let (name, on_cpu, voluntary) = (
            read("comm").trim().to_owned(),
            on_cpu.unwrap_or(0),
            voluntary.unwrap_or(0),
        );
        threads.insert(
            id,
            Thread {
                name,
                on_cpu,
                voluntary,
            },
        );
    }
    Ok(Threads(threads))
}

impl Threads {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// CPU time since `before`. What threads used that ended in between is not counted.
    pub fn cpu_since(&self, before: &Threads) -> Duration {
        let used =
            |(id, thread): (&u32, &Thread)| thread.on_cpu.saturating_sub(before.0.get(id).map_or(0, |b| b.on_cpu));
        Duration::from_nanos(self.0.iter().map(used).sum())
    }

    /// Wake-ups (voluntary context switches) since `before`, by the threads' names.
    pub fn wakeups_since(&self, before: &Threads) -> BTreeMap<String, u64> {
        let mut by_name = BTreeMap::new();
        for (id, thread) in &self.0 {
            let was = before.0.get(id).map_or(0, |b| b.voluntary);
            *by_name.entry(thread.name.clone()).or_default() += thread.voluntary.saturating_sub(was);
        }
        by_name
    }
}

/// The VMMs of machines with these uids.
pub fn vmms(uids: &[String]) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words
                .windows(2)
                .any(|pair| pair[0] == b"-uuid" && uids.iter().any(|uid| uid.as_bytes() == pair[1]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_memory_are_told_apart() {
        let text = "00400000-7fff00000000 ---p 00000000 00:00 0    [rollup]\nRss:   100 kB\nPss:      30 kB\nPss_Anon: 20 kB\nPss_File: 10 kB\nPss_Shmem: 0 kB\n";
        let pss = parse_pss(text);
        assert_eq!((pss.total, pss.anon, pss.file, pss.shmem), (30, 20, 10, 0));
    }

    #[test]
    fn a_process_sees_its_own_threads_use_time() {
        let before = threads(std::process::id()).expect("our own");
        let mut sum = 0_u64;
        while threads(std::process::id()).expect("our own").cpu_since(&before) < Duration::from_millis(5) {
            sum = sum.wrapping_add(1);
        }
        assert!(before.len() >= 1);
    }
}
