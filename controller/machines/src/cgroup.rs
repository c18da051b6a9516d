//! A cgroup per VMM, where there is one to be had: outside the agent's own, so that nothing that ends the
//! agent's cgroup ends a VM. Its name derives from the uid alone.
//!
//! Both generations are known: the single hierarchy of cgroup v2, and v1's cpu, memory and pids hierarchies.
//! Processor time is shared as among pods (KEP-2254): a VM weighs as much as a pod that requests as many processors,
//! and all VMs of a host together as much as all its processors, so that guests that compute without end starve
//! neither the agent nor what else the host is for.
//! Everything here is best effort; a VM without a cgroup runs all the same.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Memory that a VMM may use beyond its guest's: translated code, device models, page tables.
const HEADROOM: u64 = 512 << 20;
/// Threads and processes of one VMM.
const MAX_TASKS: u32 = 1024;
const PARENT: &str = "vmlet";

/// The hierarchies in which VMMs get cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unified,
    Cpu,
    Memory,
    Pids,
}

/// What a machine may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processors of the guest: a weight, not a limit.
    pub cpus: u32,
    /// Memory of the guest, in bytes.
    pub memory_bytes: u64,
}

impl Cgroups {
    /// No cgroups.
    pub fn none() -> Cgroups {
        Cgroups::default()
    }

    /// The hierarchies of this host in which the agent may make cgroups.
    pub fn find() -> Cgroups {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut hierarchies = parse_mounts(&mounts);
        hierarchies.retain(|h| rustix::fs::access(&h.root, rustix::fs::Access::WRITE_OK).is_ok());
        Cgroups { hierarchies }
    }

    /// Whether VMMs get cgroups here.
    pub fn available(&self) -> bool {
        !self.hierarchies.is_empty()
    }

    /// Makes the cgroups of one machine and sets its limits: the files to write a process id to.
    pub fn create(&self, uid: &str, limits: Limits) -> Vec<File> {
        let mut procs = Vec::new();
        for hierarchy in &self.hierarchies {
            match hierarchy.create(uid, limits) {
                Ok(file) => procs.push(file),
                Err(error) => {
                    tracing::debug!(uid, root = %hierarchy.root.display(), %error, "no cgroup here");
                }
            }
        }
        procs
    }

    /// Writes the agent into the cgroup that it is in: nobody moves, but the kernel waits until nothing of it reads
    /// its cgroups unlocked (an RCU grace period, 6 to 40 ms), and moves that follow closely need not wait again.
    /// To be called beside other work, some milliseconds before a VMM is started.
    pub fn expect_move(&self) {
        let Some(hierarchy) = self.hierarchies.first() else {
            return;
        };
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = own_cgroup(&own, hierarchy.kind) else {
            return;
        };
        let procs = hierarchy.root.join(own.trim_start_matches('/')).join("cgroup.procs");
        let pid = std::process::id().to_string();
        // Where this is a mount of a part only, the path may name another cgroup.
        let there = std::fs::read_to_string(&procs).unwrap_or_default();
        if there.lines().any(|line| line == pid) {
            let _ = std::fs::write(procs, pid);
        }
    }

    /// Whether the kernel killed something of this machine for want of memory.
    pub fn out_of_memory(&self, uid: &str) -> bool {
        self.hierarchies.iter().any(|hierarchy| {
            let file = match hierarchy.kind {
                Kind::Unified => "memory.events",
                Kind::Memory => "memory.oom_control",
                Kind::Cpu | Kind::Pids => return false,
            };
            let text = std::fs::read_to_string(hierarchy.of(uid).join(file)).unwrap_or_default();
            oom_kills(&text) > 0
        })
    }

    /// Removes the cgroups of one machine. Gone already is success.
    ///
    /// # Errors
    /// A process is still in one.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        let mut result = Ok(());
        for hierarchy in &self.hierarchies {
            match std::fs::remove_dir(hierarchy.of(uid)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
            // The last one takes the parent with it; it is refused while others are there.
            let _ = std::fs::remove_dir(hierarchy.root.join(PARENT));
        }
        result
    }
}

impl Hierarchy {
    fn of(&self, uid: &str) -> PathBuf {
        self.root.join(PARENT).join(uid)
    }

    fn create(&self, uid: &str, limits: Limits) -> io::Result<File> {
        let path = self.of(uid);
        // Another agent's last machine may take the parent away between the two.
        for _ in 0..3 {
            match std::fs::create_dir_all(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        let parent = self.root.join(PARENT);
        let memory = limits.memory_bytes.saturating_add(HEADROOM).to_string();
        let tasks = MAX_TASKS.to_string();
        let (all, own) = (shares(host_cpus()), shares(limits.cpus));
        match self.kind {
            Kind::Unified => {
                for dir in [self.root.as_path(), &parent] {
                    for controller in ["+cpu", "+memory", "+pids"] {
                        let _ = std::fs::write(dir.join("cgroup.subtree_control"), controller);
                    }
                }
                limit(&parent, "cpu.weight", &weight(all).to_string());
                limit(&path, "cpu.weight", &weight(own).to_string());
                limit(&path, "memory.max", &memory);
                limit(&path, "pids.max", &tasks);
            }
            Kind::Cpu => {
                limit(&parent, "cpu.shares", &all.to_string());
                limit(&path, "cpu.shares", &own.to_string());
            }
            Kind::Memory => limit(&path, "memory.limit_in_bytes", &memory),
            Kind::Pids => limit(&path, "pids.max", &tasks),
        }
        File::options().write(true).open(path.join("cgroup.procs"))
    }
}

/// Processors as shares of cgroup v1, in the range that the kernel takes.
fn shares(cpus: u32) -> u64 {
    (u64::from(cpus) * 1024).clamp(2, 262_144)
}

/// Shares as a weight of cgroup v2, 1 to 10000.
fn weight(shares: u64) -> u64 {
    1 + (shares - 2) * 9999 / 262_142
}

fn host_cpus() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cpus).unwrap_or(u32::MAX)
}

// A limit that cannot be set is a controller that is not there.
fn limit(path: &Path, file: &str, value: &str) {
    let _ = std::fs::write(path.join(file), value);
}

fn parse_mounts(mounts: &str) -> Vec<Hierarchy> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (root, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let has = |name| options.split(',').any(|o| o == name);
            let kind = match kind {
                "cgroup2" => Kind::Unified,
                "cgroup" if has("memory") => Kind::Memory,
                "cgroup" if has("cpu") => Kind::Cpu,
                "cgroup" if has("pids") => Kind::Pids,
                _ => return None,
            };
            Some(Hierarchy {
                root: PathBuf::from(root),
                kind,
            })
        })
        .collect()
}

/// The path of a hierarchy in a /proc/PID/cgroup.
fn own_cgroup(text: &str, kind: Kind) -> Option<&str> {
    text.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let wanted = match kind {
            Kind::Unified => controllers.is_empty(),
            Kind::Memory => controllers.split(',').any(|c| c == "memory"),
            Kind::Pids => controllers.split(',').any(|c| c == "pids"),
            Kind::Cpu => controllers.split(',').any(|c| c == "cpu"),
        };
        wanted.then_some(path)
    })
}

fn oom_kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_are_found_among_the_mounts() {
        let mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\nproc /proc proc rw 0 0\nx\n";
        let kinds: Vec<Kind> = parse_mounts(mounts).iter().map(|h| h.kind).collect();
        assert_eq!(kinds, [Kind::Memory, Kind::Cpu, Kind::Unified]);
    }

    #[test]
    fn the_own_cgroup_of_a_hierarchy_is_found() {
        let text = "5:cpu,cpuacct:/a\n4:memory:/b:c\n3:pids:/\n0::/system.slice/vmlet.service\n";
        assert_eq!(own_cgroup(text, Kind::Memory), Some("/b:c"));
        assert_eq!(own_cgroup(text, Kind::Pids), Some("/"));
        assert_eq!(own_cgroup(text, Kind::Unified), Some("/system.slice/vmlet.service"));
        assert_eq!(own_cgroup("0::/\n", Kind::Memory), None);
    }

    #[test]
    fn an_expected_move_moves_nobody() {
        let before = std::fs::read_to_string("/proc/self/cgroup").expect("reads");
        Cgroups::find().expect_move();
        assert_eq!(std::fs::read_to_string("/proc/self/cgroup").expect("reads"), before);
    }

    #[test]
    fn processors_weigh_as_those_of_pods() {
        assert_eq!([1, 2, 1000].map(shares), [1024, 2048, 262_144]);
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
    }

    #[test]
    fn kills_are_counted_in_both_generations_files() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(oom_kills("low 0\noom 2\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_cgroup_is_made_limited_and_removed() {
        let groups = Cgroups::find();
        if !groups.available() {
            println!("skipped: no cgroup may be made here");
            return;
        }
        let uid = format!("test-{}", std::process::id());
        let limits = Limits {
            cpus: 3,
            memory_bytes: 1 << 30,
        };
        assert!(!groups.create(&uid, limits).is_empty());
        for hierarchy in groups.hierarchies.iter().filter(|h| h.kind == Kind::Cpu) {
            let set = std::fs::read_to_string(hierarchy.of(&uid).join("cpu.shares")).expect("reads");
            assert_eq!(set.trim(), "3072");
        }
        assert!(!groups.out_of_memory(&uid));
        groups.remove(&uid).expect("removes");
        groups.remove(&uid).expect("gone already");
    }
}
