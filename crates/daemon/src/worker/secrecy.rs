//! What a process that holds keys does first.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Keeps this process's memory to itself: no core dump holds its keys, and no other process of the same user reads them.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_memory_private() -> std::io::Result<()> {
    // One byte: no core file, and no program of the host's that gets one either, which 0 does not prevent (core(5)).
    // Sandboxes need the same, and a limit that was lowered to 0 is not raised again without CAP_SYS_RESOURCE.
    let most = getrlimit(Resource::Core).maximum.map_or(1, |most| most.min(1));
    setrlimit(Resource::Core, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_and_not_dumpable() {
        keep_memory_private().unwrap();
        let limit = rustix::process::getrlimit(Resource::Core);
        assert!(limit.current <= Some(1) && limit.maximum <= Some(1) && limit.maximum.is_some(), "{limit:?}");
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
