//! The one place where a failure becomes an errno.

use sandpail_store::StoreError;

use crate::FsError;

/// An error number, by the kernel's names. The adapter turns it into its transport's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, clippy::upper_case_acronyms)]
pub enum Errno {
    ENOENT,
    EEXIST,
    ENOTDIR,
    EISDIR,
    ENOTEMPTY,
    EROFS,
    EBADF,
    EPERM,
    EACCES,
    EOPNOTSUPP,
    EINVAL,
    ENAMETOOLONG,
    EFBIG,
    ENOSPC,
    ENODATA,
    ERANGE,
    EBUSY,
    EXDEV,
    ESTALE,
    EIO,
    ETIMEDOUT,
    EINTR,
    EMFILE,
    ENFILE,
    EDQUOT,
    ENOMEM,
}

/// Chooses the errno of a failure.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound { .. } => Errno::ENOENT,
        FsError::Exists { .. } => Errno::EEXIST,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::ReadOnly => Errno::EROFS,
        FsError::BadHandle => Errno::EBADF,
        FsError::NotPermitted { .. } => Errno::EPERM,
        FsError::Unsupported { .. } => Errno::EOPNOTSUPP,
        FsError::Invalid { .. } => Errno::EINVAL,
        FsError::NameTooLong { .. } => Errno::ENAMETOOLONG,
        FsError::TooLarge { .. } => Errno::EFBIG,
        FsError::NoSpace { .. } => Errno::ENOSPC,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Range { .. } => Errno::ERANGE,
        FsError::Busy { .. } => Errno::EBUSY,
        FsError::OtherClass { .. } => Errno::EXDEV,
        // NFS users know this number for the same thing.
        FsError::Changed { .. } => Errno::ESTALE,
        FsError::Store { source, .. } => of_store(source),
        FsError::TimedOut { .. } => Errno::ETIMEDOUT,
        FsError::Interrupted { .. } => Errno::EINTR,
        FsError::Io { source, .. } => of_local(source),
        FsError::InUpload { .. } | FsError::Damaged { .. } => Errno::EIO,
    }
}

/// Of staging and cache files. What this host has run out of is told as that: the caller can do something about it.
fn of_local(error: &std::io::Error) -> Errno {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC) => Errno::ENOSPC,
        Some(rustix::io::Errno::DQUOT) => Errno::EDQUOT,
        Some(rustix::io::Errno::MFILE) => Errno::EMFILE,
        Some(rustix::io::Errno::NFILE) => Errno::ENFILE,
        Some(rustix::io::Errno::NOMEM) => Errno::ENOMEM,
        _ if error.kind() == std::io::ErrorKind::StorageFull => Errno::ENOSPC,
        _ => Errno::EIO,
    }
}

fn of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::NotFound { .. } => Errno::ENOENT,
        StoreError::Precondition { .. } => Errno::ESTALE,
        StoreError::Denied { .. } | StoreError::Credentials { .. } => Errno::EACCES,
        StoreError::Unsupported { .. } => Errno::EOPNOTSUPP,
        StoreError::NoSpace { .. } => Errno::ENOSPC,
        StoreError::Unreachable { .. } | StoreError::Throttled { .. } => Errno::ETIMEDOUT,
        StoreError::NoSuchBucket { .. }
        | StoreError::Server { .. }
        | StoreError::Integrity { .. }
        | StoreError::Protocol { .. }
        | StoreError::Invalid { .. } => Errno::EIO,
        StoreError::Io { source, .. } => of_local(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_provider_is_told_apart_from_a_failure() {
        let store = |source| errno(&FsError::Store { what: "put".to_owned(), source });
        assert_eq!(store(StoreError::Denied { message: String::new() }), Errno::EACCES);
        assert_eq!(store(StoreError::Server { message: String::new() }), Errno::EIO);
        assert_eq!(store(StoreError::Precondition { what: String::new() }), Errno::ESTALE);
    }

    #[test]
    fn what_this_host_has_run_out_of_is_told_as_that() {
        use rustix::io::Errno as Os;
        let cases = [
            (Os::NOSPC, Errno::ENOSPC),
            (Os::DQUOT, Errno::EDQUOT),
            (Os::MFILE, Errno::EMFILE),
            (Os::NFILE, Errno::ENFILE),
            (Os::NOMEM, Errno::ENOMEM),
            (Os::ACCESS, Errno::EIO),
        ];
        for (os, told) in cases {
            let local = FsError::Io { what: "staging".to_owned(), source: os.into() };
            assert_eq!(errno(&local), told, "{os}");
            let source = StoreError::Io { what: "bucket".to_owned(), source: os.into() };
            assert_eq!(errno(&FsError::Store { what: "put".to_owned(), source }), told, "{os} of a directory");
        }
    }
}
