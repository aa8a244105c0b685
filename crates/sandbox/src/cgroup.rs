//! Limits by control groups: version 2 where its controllers are to be had, version 1 beside it, or none at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Finding, Limits};

/// Parent of all our groups, in each hierarchy.
const PARENT: &str = "sandpail";
/// How often a group is tried again whose parent was removed just then.
const PARENT_TRIES: usize = 20;

/// The kernel's period for processor quotas, in microseconds.
const PERIOD_US: u64 = 100_000;

/// What limits a group can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Cpu,
}

const CONTROLLERS: [Controller; 3] = [Controller::Memory, Controller::Pids, Controller::Cpu];

impl Controller {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// How to set one limit: files below the group and what to write.
fn settings(controller: Controller, is_v2: bool, limits: &Limits) -> Vec<(&'static str, String)> {
    match (controller, is_v2) {
        (Controller::Memory, true) => limits.memory.map_or_else(Vec::new, |bytes| {
            vec![("memory.max", bytes.to_string()), ("memory.swap.max", "0".to_owned())]
        }),
        // Swap off: memory and swap together may be no more than memory. The order matters.
        (Controller::Memory, false) => limits.memory.map_or_else(Vec::new, |bytes| {
            vec![("memory.limit_in_bytes", bytes.to_string()), ("memory.memsw.limit_in_bytes", bytes.to_string())]
        }),
        (Controller::Pids, _) => limits.pids.map_or_else(Vec::new, |count| vec![("pids.max", count.to_string())]),
        (Controller::Cpu, true) => {
            quota(limits).map_or_else(Vec::new, |quota| vec![("cpu.max", format!("{quota} {PERIOD_US}"))])
        }
        (Controller::Cpu, false) => quota(limits).map_or_else(Vec::new, |quota| {
            vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
        }),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped; a fraction of a µs is nothing")]
fn quota(limits: &Limits) -> Option<u64> {
    /// The kernel refuses less than a millisecond.
    const QUOTA_US_MIN: f64 = 1_000.0;
    limits.cpus.map(|cpus| (cpus * PERIOD_US as f64).clamp(QUOTA_US_MIN, 1e12) as u64)
}

/// A hierarchy and the controllers that we can use in it.
#[derive(Clone, Debug)]
struct Hierarchy {
    root: PathBuf,
    is_v2: bool,
    controllers: Vec<Controller>,
}

/// The control groups of this host.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Looks at the host.
    pub(crate) fn detect() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut hierarchies = parse_mounts(&mounts);
        for hierarchy in hierarchies.iter_mut().filter(|hierarchy| hierarchy.is_v2) {
            let there = fs::read_to_string(hierarchy.root.join("cgroup.controllers")).unwrap_or_default();
            hierarchy.controllers =
                CONTROLLERS.into_iter().filter(|one| there.split_whitespace().any(|name| name == one.name())).collect();
        }
        Self { hierarchies }
    }

    /// Makes the groups that these limits need and returns their directories. What this host cannot limit is left out.
    ///
    /// # Errors
    /// When a limit that the host has a controller for cannot be set.
    pub(crate) fn make(&self, name: &str, limits: &Limits) -> io::Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        for hierarchy in &self.hierarchies {
            let wanted: Vec<_> = hierarchy
                .controllers
                .iter()
                .map(|controller| (*controller, settings(*controller, hierarchy.is_v2, limits)))
                .filter(|(_, settings)| !settings.is_empty())
                .collect();
            if wanted.is_empty() {
                continue;
            }
            let parent = hierarchy.root.join(PARENT);
            let group = parent.join(name);
            let make = || -> io::Result<()> {
                fs::create_dir_all(&parent)?;
                if hierarchy.is_v2 {
                    for (controller, _) in &wanted {
                        for directory in [&hierarchy.root, &parent] {
                            fs::write(directory.join("cgroup.subtree_control"), format!("+{}", controller.name()))?;
                        }
                    }
                }
                fs::create_dir(&group)
            };
            // The end of another sandbox may remove the parent at any time before.
            let mut made_here = make();
            for _ in 0..PARENT_TRIES {
                match &made_here {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => made_here = make(),
                    _ => break,
                }
            }
            match made_here {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            made.push(group.clone());
            for (file, value) in wanted.into_iter().flat_map(|(_, settings)| settings) {
                match fs::write(group.join(file), value) {
                    // A kernel without swap accounting has no such file.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && file.contains("sw") => {}
                    result => result?,
                }
            }
        }
        Ok(made)
    }

    /// Removes the groups of this name. Their processes must have ended.
    ///
    /// # Errors
    /// `EBUSY` while a process is in one.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.root.join(PARENT);
            match fs::remove_dir(parent.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // The last one takes the parent along; the kernel refuses while there are others.
                _ => drop(fs::remove_dir(parent)),
            }
        }
        Ok(())
    }

    /// One finding for each controller.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let finding = |controller: Controller| {
            let found = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller));
            let detail = match found {
                Some(hierarchy) if hierarchy.is_v2 => format!("version 2 at {}", hierarchy.root.display()),
                Some(hierarchy) => format!("version 1 at {}", hierarchy.root.display()),
                None => "this limit is not enforced: no control group hierarchy has the controller".to_owned(),
            };
            let what = match controller {
                Controller::Memory => "cgroup memory",
                Controller::Pids => "cgroup pids",
                Controller::Cpu => "cgroup cpu",
            };
            Finding { what, is_ok: found.is_some(), detail }
        };
        CONTROLLERS.map(finding).to_vec()
    }
}

/// Reads `/proc/self/mounts`; version 2 hierarchies tell their controllers elsewhere.
fn parse_mounts(mounts: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let mut fields = line.split(' ');
        let (root, kind, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let controllers = match kind {
            "cgroup2" => Vec::new(),
            "cgroup" => CONTROLLERS.into_iter().filter(|one| options.split(',').any(|o| o == one.name())).collect(),
            _ => return None,
        };
        let is_v2 = kind == "cgroup2";
        (is_v2 || !controllers.is_empty()).then(|| Hierarchy { root: Path::new(root).into(), is_v2, controllers })
    };
    mounts.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies() {
        let mounts = "cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\nx /cg/systemd cgroup rw,name=systemd 0 0\n\
                      cgroup2 /cg/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0";
        let found = parse_mounts(mounts);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].controllers.as_slice(), found[0].is_v2), (&[Controller::Cpu][..], false));
        assert!(found[1].is_v2);
    }

    #[test]
    fn values() {
        let limits = Limits { memory: Some(1 << 20), pids: Some(7), cpus: Some(1.5), ..Limits::default() };
        assert_eq!(settings(Controller::Cpu, true, &limits), [("cpu.max", "150000 100000".to_owned())]);
        assert_eq!(settings(Controller::Pids, false, &limits), [("pids.max", "7".to_owned())]);
        assert_eq!(settings(Controller::Memory, true, &limits)[0].1, "1048576");
        assert!(settings(Controller::Memory, true, &Limits::default()).is_empty());
    }
}
