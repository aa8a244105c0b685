//! The life of a mount. Decides; does nothing.
//!
//! ```text
//! Reserved ──► Starting ──► Serving ◄──► Draining ──► Leaving ──► (gone)
//!    │            │            │             │           ▲  └──► Serving, if it is in use
//!    └──► (gone) ◄┘            └───► Failed ◄┘───────────┘
//! ```
//!
//! A mount whose process died stays where it is: every call there fails at once (`ENOTCONN`) and nothing is written to
//! the directory below. It goes by unmounting, by mounting again at its path, or with its sandbox.

/// Where a mount is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountState {
    /// The path is taken; nothing exists yet.
    Reserved,
    /// The process runs; nothing answers yet.
    Starting,
    /// It was used once through the sandbox's own path.
    Serving,
    /// What is written goes to the bucket.
    Draining,
    /// Everything is stored, or shall be left behind; it is being detached.
    Leaving,
    /// The process died.
    Failed {
        /// How.
        reason: String,
    },
}

/// What happens to a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MountEvent {
    /// Its process runs.
    Spawned,
    /// It was used once.
    Proven,
    /// It shall go.
    Unmount,
    /// Everything is stored, or need not be.
    Stored,
    /// It cannot go: something is not stored, or it is in use.
    Kept,
    /// Its process ended.
    Ended {
        /// How.
        reason: String,
    },
}

/// What has to be done then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing more.
    Nothing,
    /// Ask the process to store everything.
    Store,
    /// Take it out of the sandbox.
    Detach,
    /// Tell that it failed.
    Report,
    /// Refuse: this cannot happen here.
    Refuse,
}

/// The one place where a mount's state changes.
pub(crate) fn next(state: MountState, event: MountEvent) -> (MountState, Action) {
    use MountEvent as E;
    use MountState as S;
    match (state, event) {
        (S::Reserved, E::Spawned) => (S::Starting, Action::Nothing),
        // A directory that is kept equal has no process.
        (S::Reserved | S::Starting, E::Proven) => (S::Serving, Action::Nothing),
        // The call that makes the mount tells of it.
        (S::Starting, E::Ended { reason }) => (S::Failed { reason }, Action::Nothing),
        (S::Serving, E::Unmount) => (S::Draining, Action::Store),
        (S::Draining, E::Stored) => (S::Leaving, Action::Detach),
        (S::Draining | S::Leaving, E::Kept) => (S::Serving, Action::Nothing),
        (S::Serving | S::Draining, E::Ended { reason }) => (S::Failed { reason }, Action::Report),
        // As it must.
        (S::Leaving, E::Ended { .. }) => (S::Leaving, Action::Nothing),
        (S::Failed { reason }, E::Ended { .. }) => (S::Failed { reason }, Action::Nothing),
        (S::Failed { .. }, E::Unmount) => (S::Leaving, Action::Detach),
        (state, _) => (state, Action::Refuse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(events: &[MountEvent], expected: &MountState, last: Action) {
        let mut state = MountState::Reserved;
        let mut action = Action::Nothing;
        for event in events {
            (state, action) = next(state, event.clone());
        }
        assert_eq!((&state, action), (expected, last), "{events:?}");
    }

    #[test]
    fn lives_of_mounts() {
        use MountEvent::{Kept, Proven, Spawned, Stored, Unmount};
        let died = || MountEvent::Ended { reason: "signal 9".to_owned() };
        let failed = || MountState::Failed { reason: "signal 9".to_owned() };
        check(&[Spawned, Proven], &MountState::Serving, Action::Nothing);
        check(&[Proven], &MountState::Serving, Action::Nothing);
        check(&[Spawned, Proven, Unmount], &MountState::Draining, Action::Store);
        check(&[Spawned, Proven, Unmount, Kept], &MountState::Serving, Action::Nothing);
        check(&[Spawned, Proven, Unmount, Stored], &MountState::Leaving, Action::Detach);
        check(&[Spawned, Proven, Unmount, Stored, Kept], &MountState::Serving, Action::Nothing);
        check(&[Spawned, Proven, Unmount, Stored, died()], &MountState::Leaving, Action::Nothing);
        check(&[Spawned, Proven, died()], &failed(), Action::Report);
        check(&[Spawned, Proven, Unmount, died()], &failed(), Action::Report);
        check(&[Spawned, died()], &failed(), Action::Nothing);
        check(&[Spawned, Proven, died(), Unmount], &MountState::Leaving, Action::Detach);
        // What cannot happen changes nothing.
        check(&[Unmount], &MountState::Reserved, Action::Refuse);
        check(&[Spawned, Proven, Stored], &MountState::Serving, Action::Refuse);
        check(&[Spawned, Proven, Unmount, Unmount], &MountState::Draining, Action::Refuse);
        check(&[Spawned, Proven, died(), Stored], &failed(), Action::Refuse);
    }
}
